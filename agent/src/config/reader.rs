//! Takes known keys out of a TOML document; what remains is an error.
//!
//! Each key is named once, where it is read: the list of known keys, which the nearest one is
//! looked for in, is the list of what was asked for.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::ConfigError;

/// A parsed file, and what has been taken out of it.
pub(super) struct Document<'t> {
    file: PathBuf,
    entries: BTreeMap<String, Entry<'t>>,
    asked: Vec<&'static str>,
}

struct Entry<'t> {
    line: usize,
    value: DeValue<'t>,
}

impl<'t> Document<'t> {
    pub(super) fn parse(file: &Path, text: &'t str) -> Result<Self, ConfigError> {
        let root = DeTable::parse(text).map_err(|error| ConfigError::Syntax {
            file: file.to_owned(),
            line: line_of(text, error.span()),
            problem: error.message().lines().collect::<Vec<_>>().join(", "),
        })?;
        let entries = flatten(text, root.into_inner());
        Ok(Self {
            file: file.to_owned(),
            entries,
            asked: Vec::new(),
        })
    }

    pub(super) fn boolean(&mut self, key: &'static str, or: bool) -> Result<bool, ConfigError> {
        self.take(key, or, |value| {
            value
                .as_bool()
                .ok_or_else(|| expected("true or false", value))
        })
    }

    pub(super) fn number(
        &mut self,
        key: &'static str,
        or: u16,
        range: RangeInclusive<u16>,
    ) -> Result<u16, ConfigError> {
        self.take(key, or, |value| one_number(value, &range))
    }

    /// How many of something.
    pub(super) fn count(
        &mut self,
        key: &'static str,
        or: usize,
        range: RangeInclusive<usize>,
    ) -> Result<usize, ConfigError> {
        self.take(key, or, |value| one_number(value, &range))
    }

    pub(super) fn text<T, E: Display>(
        &mut self,
        key: &'static str,
        or: T,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Result<T, ConfigError> {
        self.take(key, or, |value| one_text(value, &parse))
    }

    pub(super) fn list<T, E: Display>(
        &mut self,
        key: &'static str,
        or: Vec<T>,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Result<Vec<T>, ConfigError> {
        self.take(key, or, |value| {
            let items = value
                .as_array()
                .ok_or_else(|| expected("a list of texts", value))?;
            items
                .iter()
                .map(|item| one_text(item.get_ref(), &parse))
                .collect()
        })
    }

    /// Everything must have been taken by now.
    pub(super) fn finish(self) -> Result<(), ConfigError> {
        let Self {
            file,
            entries,
            asked,
        } = self;
        let empty_section = |key: &str, entry: &Entry<'_>| {
            entry.value.is_table() && asked.iter().any(|known| split(known).0 == key)
        };
        let mut unknown = entries
            .iter()
            .filter(|(key, entry)| !empty_section(key, entry));
        let Some((key, entry)) = unknown.next() else {
            return Ok(());
        };
        let nearest = nearest(key, &asked);
        Err(ConfigError::UnknownKey {
            file,
            line: entry.line,
            key: key.clone(),
            nearest,
        })
    }

    fn take<T>(
        &mut self,
        key: &'static str,
        or: T,
        parse: impl FnOnce(&DeValue<'_>) -> Result<T, String>,
    ) -> Result<T, ConfigError> {
        self.asked.push(key);
        let Some(Entry { line, value }) = self.entries.remove(key) else {
            return Ok(or);
        };
        let file = || self.file.clone();
        parse(&value).map_err(|problem| ConfigError::Value {
            file: file(),
            line,
            key,
            problem,
        })
    }
}

fn one_number<T: TryFrom<i64> + PartialOrd + Display>(
    value: &DeValue<'_>,
    range: &RangeInclusive<T>,
) -> Result<T, String> {
    let what = format!("a number from {} to {}", range.start(), range.end());
    let integer = value.as_integer().ok_or_else(|| expected(&what, value))?;
    let number = i64::from_str_radix(integer.as_str(), integer.radix()).ok();
    let number = number.and_then(|n| T::try_from(n).ok());
    number
        .filter(|n| range.contains(n))
        .ok_or_else(|| expected(&what, value))
}

/// `section.key` for each key of a section; what is in no section, and a section without keys,
/// under its own name.
fn flatten<'t>(text: &str, root: DeTable<'t>) -> BTreeMap<String, Entry<'t>> {
    let mut entries = BTreeMap::new();
    for (section, value) in root {
        let line = line_of(text, Some(section.span()));
        let section = section.into_inner();
        let value = value.into_inner();
        let Some(table) = value.as_table().filter(|table| !table.is_empty()) else {
            entries.insert(section.into_owned(), Entry { line, value });
            continue;
        };
        for (key, value) in table {
            let line = line_of(text, Some(key.span()));
            let entry = Entry {
                line,
                value: value.get_ref().clone(),
            };
            entries.insert(format!("{section}.{}", key.get_ref()), entry);
        }
    }
    entries
}

fn line_of(text: &str, span: Option<Range<usize>>) -> usize {
    let start = span.map_or(0, |span| span.start);
    1 + text
        .bytes()
        .take(start)
        .filter(|byte| *byte == b'\n')
        .count()
}

fn one_text<T, E: Display>(
    value: &DeValue<'_>,
    parse: impl Fn(&str) -> Result<T, E>,
) -> Result<T, String> {
    let text = value
        .as_str()
        .ok_or_else(|| expected("a text in quotes", value))?;
    parse(text).map_err(|error| error.to_string())
}

fn expected(what: &str, found: &DeValue<'_>) -> String {
    let found = found
        .as_integer()
        .map_or_else(|| found.type_str().into(), ToString::to_string);
    format!("expected {what}, found {found}")
}

fn split(key: &str) -> (&str, &str) {
    key.split_once('.').unwrap_or(("", key))
}

/// A slip in the name costs more than the wrong section: `[exchange] interfaces` is
/// `discovery.interfaces` rather than `exchange.listen`. What stands in no section may be a section
/// itself.
fn nearest(key: &str, known: &[&'static str]) -> &'static str {
    let distance = strsim::damerau_levenshtein;
    let (section, name) = split(key);
    let cost = |candidate: &&&'static str| {
        let (of, called) = split(candidate);
        let as_key = 2 * distance(name, called) + distance(section, of);
        let as_section = 2 * distance(key, of) + called.len();
        if section.is_empty() {
            as_key.min(as_section)
        } else {
            as_key
        }
    };
    known.iter().min_by_key(cost).expect("there are keys")
}
