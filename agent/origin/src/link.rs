//! Finds the manifest a response links to (RFC 8288).

use reqwest::header::{HeaderMap, LINK};
use url::Url;

use crate::fields;
use crate::target::{is_http, without_login};

/// The media type of manifests.
const MANIFEST_TYPE: &str = "application/vnd.branchline.manifest";

/// The first `Link` to a manifest, made absolute against the URL that answered.
pub(crate) fn manifest_link(headers: &HeaderMap, base: &Url) -> Option<Url> {
    let text = fields::all(headers, &LINK);
    Links { rest: &text }
        .filter(Link::is_manifest)
        .find_map(|link| {
            let url = base.join(link.target).ok().filter(is_http)?;
            Some(without_login(url).0)
        })
}

struct Link<'a> {
    target: &'a str,
    parameters: Vec<(String, String)>,
}

impl Link<'_> {
    /// A link with an anchor is one from another resource than the file.
    fn is_manifest(&self) -> bool {
        let relation = self.parameter("rel").unwrap_or_default();
        relation
            .split_ascii_whitespace()
            .any(|rel| rel.eq_ignore_ascii_case("describedby"))
            && self
                .parameter("type")
                .is_some_and(|t| t.trim().eq_ignore_ascii_case(MANIFEST_TYPE))
            && self.parameter("anchor").is_none()
    }

    /// The first of a name counts (RFC 8288, section 3).
    fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }
}

/// The links of a field, up to the first thing that is none.
struct Links<'a> {
    rest: &'a str,
}

impl<'a> Iterator for Links<'a> {
    type Item = Link<'a>;

    fn next(&mut self) -> Option<Link<'a>> {
        self.rest = self.rest.trim_start_matches([' ', '\t', ',']);
        let (target, rest) = self.rest.strip_prefix('<')?.split_once('>')?;
        self.rest = rest;
        let mut parameters = Vec::new();
        while let Some(parameter) = self.parameter() {
            parameters.push(parameter);
        }
        Some(Link {
            target: target.trim(),
            parameters,
        })
    }
}

impl<'a> Links<'a> {
    fn parameter(&mut self) -> Option<(String, String)> {
        self.rest = self.skip_blanks().strip_prefix(';')?;
        let name = self.until(&[';', ',', '=', ' ', '\t']).to_ascii_lowercase();
        let Some(rest) = self.skip_blanks().strip_prefix('=') else {
            return Some((name, String::new()));
        };
        self.rest = rest;
        let value = match self.skip_blanks().strip_prefix('"') {
            Some(rest) => {
                self.rest = rest;
                self.quoted()
            }
            None => self.until(&[';', ',', ' ', '\t']).to_owned(),
        };
        Some((name, value))
    }

    fn skip_blanks(&self) -> &'a str {
        self.rest.trim_start_matches([' ', '\t'])
    }

    fn until(&mut self, ends: &[char]) -> &'a str {
        let rest = self.skip_blanks();
        let (word, rest) = rest.split_at(rest.find(ends).unwrap_or(rest.len()));
        self.rest = rest;
        word
    }

    fn quoted(&mut self) -> String {
        let mut value = String::new();
        let mut chars = self.rest.chars();
        while let Some(c) = chars.next() {
            match c {
                '"' => break,
                '\\' => value.extend(chars.next()),
                other => value.push(other),
            }
        }
        self.rest = chars.as_str();
        value
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use reqwest::header::HeaderValue;

    use super::*;

    fn found(lines: &[&str]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(LINK, HeaderValue::from_str(line).expect("a value"));
        }
        let base = Url::parse("https://h/d/file.bin?x=1").expect("a URL");
        manifest_link(&headers, &base).map(Url::into)
    }

    const GOOD: &str = r#"<m>; rel="describedby"; type="application/vnd.branchline.manifest""#;

    #[test]
    fn a_manifest_is_found_among_other_links() {
        assert_eq!(found(&[GOOD]).as_deref(), Some("https://h/d/m"));
        let other = r#"<a,b>; rel=next; title="x, <y>; rel=describedby", </z>;rel="license""#;
        assert_eq!(found(&[other, GOOD]).as_deref(), Some("https://h/d/m"));
        let odd = "</m2> ; REL = \"up DescribedBy\" ;crossorigin; type=application/vnd.Branchline.manifest";
        assert_eq!(
            found(&[&format!("{other}, {odd}")]).as_deref(),
            Some("https://h/m2")
        );
        let far = GOOD.replace("<m>", "<http://u:p@other/m>");
        assert_eq!(found(&[&far]).as_deref(), Some("http://other/m"));
    }

    #[test]
    fn links_to_anything_else_are_passed_over() {
        for line in [
            r#"<m>; rel="describedby""#,
            r#"<m>; rel="describedby"; type="text/html""#,
            r#"<m>; rel="alternate"; type="application/vnd.branchline.manifest""#,
            &GOOD.replace("<m>", "<ftp://h/m>"),
            &GOOD.replace("<m>", "<javascript:x>"),
            &format!("{GOOD}; anchor=\"#part\""),
            &GOOD[1..],
            "<m",
            "",
        ] {
            assert_eq!(found(&[line]), None, "{line}");
        }
    }

    proptest! {
        #[test]
        fn any_field_is_read(text in "(<|>|;|,|=|\"|\\\\| |rel|type|describedby|[a-z])*") {
            found(&[&text]);
        }
    }
}
