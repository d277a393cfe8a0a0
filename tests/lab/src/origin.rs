//! A real nginx on a host of the lab, serving one directory over HTTP and HTTPS.
//!
//! It runs as one process without a master, as root: a user namespace has one user, so workers could
//! not change theirs. Its files are in the lab's scratch and vanish with it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::host::{Host, search_path, shell};
use crate::process::Process;

/// nginx reads its configuration and binds two ports; more means that something is wrong.
const START_PATIENCE: Duration = Duration::from_secs(15);

/// Requested to know that everything before it has been logged.
const SYNC_PATH: &str = "/.branchline-lab-sync";

/// What the origin serves.
#[derive(Clone, Debug, Default)]
pub struct OriginOptions {
    /// The directory to serve.
    pub root: PathBuf,
    /// nginx directives for the `server` block, for instance `max_ranges 0;`, or `limit_conn all 1;` for one request at a time,
    /// whoever asks.
    pub server_directives: String,
}

impl OriginOptions {
    /// Serves `root` as nginx does by default: ranges, ETags, last modification.
    #[must_use]
    pub fn serving(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            server_directives: String::new(),
        }
    }
}

/// One request, as nginx logged it at its end.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Request {
    /// `GET`, `HEAD`, ...
    pub method: String,
    /// Path and query as sent.
    pub path: String,
    /// The `Range` header, empty without one.
    pub range: String,
    /// The `If-Range` header, empty without one.
    pub if_range: String,
    /// The response's status; 499 when the client went away before it.
    pub status: u16,
    /// Bytes of body that were sent, after the client went away too.
    pub body_bytes: u64,
    /// `HTTP/1.1` or `HTTP/2.0`.
    pub protocol: String,
    /// The client's address.
    pub client: String,
    /// The `User-Agent` header.
    pub user_agent: String,
}

/// A running nginx. Dropping it kills it.
pub struct Origin {
    host: Host,
    name: String,
    process: Process,
    directory: PathBuf,
    ca_certificate: PathBuf,
}

impl Origin {
    /// Starts nginx on `host`: port 80, and port 443 with TLS 1.3 and HTTP/2.
    ///
    /// # Errors
    /// When nginx or openssl is missing or does not start; the message holds its error log.
    pub fn start(host: &Host, options: &OriginOptions) -> Result<Self> {
        let root = std::path::absolute(&options.root)?;
        ensure!(
            root.is_dir(),
            "the origin's directory {} does not exist",
            root.display()
        );
        let folder = format!("nginx-{}", host.name());
        let inside = host.scratch().join(&folder);
        let directory = host.scratch_from_outside().join(&folder);
        fs::create_dir_all(&directory).context("cannot write to the lab's scratch")?;
        make_certificates(host, &inside)?;
        let http2 = http2_directives(host)?;
        let configuration = configuration(&inside, &root, &http2, &options.server_directives);
        fs::write(directory.join("nginx.conf"), configuration)?;
        let process = spawn_nginx(host, &inside)?;
        let ca_certificate = inside.join("ca.pem");
        let name = format!("{}.test", host.name());
        let mut origin = Self {
            host: host.clone(),
            name,
            process,
            directory,
            ca_certificate,
        };
        origin.wait_until_serving()?;
        Ok(origin)
    }

    /// The HTTP URL of a path below the root.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("http://{}/{}", self.name, path.trim_start_matches('/'))
    }

    /// The HTTPS URL of a path below the root.
    #[must_use]
    pub fn https_url(&self, path: &str) -> String {
        format!("https://{}/{}", self.name, path.trim_start_matches('/'))
    }

    /// The certificate authority's PEM file, as programs on any host of the lab see it.
    #[must_use]
    pub fn ca_certificate(&self) -> &Path {
        &self.ca_certificate
    }

    /// nginx itself, to measure, stop or kill.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// All requests that had ended before this call, in the order of their ends.
    ///
    /// # Errors
    /// When nginx no longer answers, or its log cannot be read.
    pub fn requests(&mut self) -> Result<Vec<Request>> {
        self.synchronise()?;
        let log = fs::read_to_string(self.directory.join("access.log"))?;
        let parse = |line: &str| {
            serde_json::from_str::<Request>(line).with_context(|| format!("odd log line {line}"))
        };
        let all = log.lines().map(parse).collect::<Result<Vec<_>>>()?;
        Ok(all
            .into_iter()
            .filter(|request| request.path != SYNC_PATH)
            .collect())
    }

    /// nginx's error log.
    #[must_use]
    pub fn error_log(&self) -> String {
        fs::read_to_string(self.directory.join("error.log")).unwrap_or_default()
    }

    /// The one process answers in order, so once this answer is here whatever ended before is in
    /// the log.
    fn synchronise(&mut self) -> Result<()> {
        let url = format!("http://127.0.0.1{SYNC_PATH}");
        let mut curl = Command::new("curl");
        curl.args([
            "--silent",
            "--show-error",
            "--fail",
            "--max-time",
            "30",
            &url,
        ]);
        let answer = self.host.run(curl, Duration::from_secs(60))?.success();
        answer
            .map(drop)
            .with_context(|| format!("nginx: {}", self.error_log()))
    }

    /// nginx listens before it writes its pid file.
    fn wait_until_serving(&mut self) -> Result<()> {
        let pid_file = self.directory.join("nginx.pid");
        let deadline = Instant::now() + START_PATIENCE;
        while fs::metadata(&pid_file).map_or(0, |meta| meta.len()) == 0 {
            if !self.process.is_running() || Instant::now() > deadline {
                bail!(
                    "nginx did not start: {}{}",
                    self.process.stderr(),
                    self.error_log()
                );
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.synchronise()
    }
}

fn spawn_nginx(host: &Host, inside: &Path) -> Result<Process> {
    let mut nginx = Command::new("nginx");
    nginx.env("PATH", search_path()).arg("-p").arg(inside);
    nginx
        .arg("-e")
        .arg(inside.join("error.log"))
        .arg("-c")
        .arg(inside.join("nginx.conf"));
    host.spawn(nginx)
        .context("cannot start nginx (Debian: nginx-light)")
}

/// From 1.25.1 on HTTP/2 is a directive of its own, before it a word on `listen`.
fn http2_directives(host: &Host) -> Result<String> {
    let mut nginx = Command::new("nginx");
    nginx.env("PATH", search_path()).arg("-v");
    let answer = host
        .run(nginx, START_PATIENCE)
        .context("cannot run nginx (Debian: nginx-light)")?;
    let text = answer.error_text();
    let version = nginx_version(&text).with_context(|| format!("odd nginx version {text:?}"))?;
    Ok(if version >= [1, 25, 1] {
        "listen 443 ssl; http2 on;".to_owned()
    } else {
        "listen 443 ssl http2;".to_owned()
    })
}

fn nginx_version(text: &str) -> Option<[u32; 3]> {
    let number = text
        .split_once("nginx/")?
        .1
        .split_ascii_whitespace()
        .next()?;
    let mut parts = number.split('.').map(|part| part.parse().ok());
    Some([parts.next()??, parts.next()??, parts.next()??])
}

/// An authority of the lab's own and a certificate by it, for the host's name and address.
fn make_certificates(host: &Host, inside: &Path) -> Result<()> {
    let script = format!(
        "cd {directory}
         new='openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes'
         $new -x509 -keyout ca.key -out ca.pem -days 30 -subj '/CN=Branchline lab' \
           -addext keyUsage=critical,keyCertSign 2>openssl.log
         $new -keyout server.key -out server.csr -subj /CN={name}.test 2>>openssl.log
         printf 'subjectAltName=DNS:{name}.test,IP:{address}\\nbasicConstraints=CA:FALSE\\n' > server.ext
         openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial \
           -extfile server.ext -out server.pem -days 30 2>>openssl.log",
        directory = inside.display(),
        name = host.name(),
        address = host.address(),
    );
    let mut command = shell();
    command.args(["-euc", &script]);
    let made = host.run(command, START_PATIENCE)?.success();
    made.map(drop)
        .context("cannot make certificates (is openssl installed?)")
}

fn configuration(inside: &Path, root: &Path, https: &str, directives: &str) -> String {
    let directory = inside.display();
    let root = root.display();
    format!(
        r#"user root;
daemon off;
master_process off;
pid {directory}/nginx.pid;
error_log {directory}/error.log notice;
events {{ worker_connections 4096; }}
http {{
    default_type application/octet-stream;
    sendfile on;
    tcp_nopush on;
    tcp_nodelay on;
    client_body_temp_path {directory}/client_body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    log_format lab escape=json '{{"method":"$request_method","path":"$request_uri",'
        '"range":"$http_range","if_range":"$http_if_range","status":$status,'
        '"body_bytes":$body_bytes_sent,"protocol":"$server_protocol",'
        '"client":"$remote_addr","user_agent":"$http_user_agent"}}';
    access_log {directory}/access.log lab;
    limit_conn_zone $server_port zone=all:1m;
    server {{
        listen 80;
        {https}
        ssl_certificate {directory}/server.pem;
        ssl_certificate_key {directory}/server.key;
        ssl_protocols TLSv1.3;
        root "{root}";
        location = {SYNC_PATH} {{ return 204; }}
        {directives}
    }}
}}
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nginx_versions_compare_as_numbers() {
        assert_eq!(
            nginx_version("nginx version: nginx/1.22.1\n"),
            Some([1, 22, 1])
        );
        assert_eq!(
            nginx_version("nginx version: nginx/1.26.3 (Debian)"),
            Some([1, 26, 3])
        );
        assert_eq!(nginx_version("sh: nginx: not found"), None);
    }

    #[test]
    fn a_log_line_is_understood() -> Result<()> {
        let line = r#"{"method":"GET","path":"/a","range":"bytes=0-9","if_range":"\"x\"",
            "status":206,"body_bytes":10,"protocol":"HTTP/1.1","client":"10.77.1.1","user_agent":""}"#;
        let request: Request = serde_json::from_str(line)?;
        assert_eq!((request.status, request.body_bytes), (206, 10));
        assert_eq!(request.if_range, "\"x\"");
        Ok(())
    }
}
