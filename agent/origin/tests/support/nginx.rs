//! A real nginx on 127.0.0.1, with a folder of its own, ended with the test.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

pub struct Nginx {
    folder: TempDir,
    child: Child,
    http: u16,
    https: u16,
}

impl Nginx {
    /// Starts it; `server` goes into both server blocks, plain and TLS with HTTP/2.
    pub fn start(server: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::create_dir(folder.path().join("www")).expect("a folder in it");
        make_certificates(folder.path());
        // Another process may take a free port before nginx does; then nginx ends, and two others
        // are taken.
        for _ in 0..5 {
            let (http, https) = (free_port(), free_port());
            if let Some(child) = launch(folder.path(), http, https, server) {
                return Self {
                    folder,
                    child,
                    http,
                    https,
                };
            }
        }
        let log = std::fs::read_to_string(folder.path().join("error.log")).unwrap_or_default();
        panic!("nginx does not start: {log}");
    }

    pub fn put(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.folder.path().join("www").join(name);
        std::fs::write(&path, bytes).expect("the folder is ours");
        path
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn http(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.http)
    }

    pub fn https(&self, path: &str) -> String {
        format!("https://127.0.0.1:{}{path}", self.https)
    }

    pub fn https_port(&self) -> u16 {
        self.https
    }

    /// Waits until the access log has `text`: nginx writes a line after the answer is out.
    pub fn wait_for_log(&self, text: &str) -> String {
        let path = self.path("access.log");
        wait_until("the access log to have its line", || {
            let log = std::fs::read_to_string(&path).unwrap_or_default();
            log.contains(text).then_some(log)
        })
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn launch(folder: &Path, http: u16, https: u16, server: &str) -> Option<Child> {
    let config = folder.join("nginx.conf");
    std::fs::write(&config, configuration(folder, http, https, server)).expect("folder is ours");
    let mut child = Command::new("nginx")
        .arg("-p")
        .arg(folder)
        .arg("-c")
        .arg(&config)
        .arg("-e")
        .arg(folder.join("error.log"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("nginx is needed for this test: apt install nginx-light");
    wait_until("nginx to listen or to end", || {
        if child.try_wait().expect("our own child").is_some() {
            return Some(None);
        }
        let listens = |port| TcpStream::connect(("127.0.0.1", port)).is_ok();
        (listens(http) && listens(https)).then_some(Some(()))
    })
    .map(|()| child)
}

fn configuration(folder: &Path, http: u16, https: u16, server: &str) -> String {
    let d = folder.display();
    format!(
        "daemon off; master_process off; pid {d}/pid; error_log {d}/error.log info;\n\
         events {{ worker_connections 128; }}\n\
         http {{\n\
           log_format short '$server_protocol $request_method $uri $status $http_range';\n\
           access_log {d}/access.log short;\n\
           client_body_temp_path {d}/b; proxy_temp_path {d}/p; fastcgi_temp_path {d}/f;\n\
           uwsgi_temp_path {d}/u; scgi_temp_path {d}/s;\n\
           server {{ listen 127.0.0.1:{http}; root {d}/www; {server} }}\n\
           server {{\n\
             listen 127.0.0.1:{https} ssl http2; root {d}/www;\n\
             ssl_certificate {d}/cert.pem; ssl_certificate_key {d}/key.pem;\n\
             {server}\n\
           }}\n\
         }}\n"
    )
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("it is bound").port()
}

fn make_certificates(folder: &Path) {
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(
        folder,
        &format!("req -x509 {key} -keyout ca.key -out ca.pem -days 9 -subj /CN=test"),
    );
    let names = "subjectAltName=IP:127.0.0.1,DNS:localhost";
    let request = format!("req {key} -keyout key.pem -out csr.pem -subj /CN=leaf -addext {names}");
    openssl(folder, &request);
    let sign = "-CA ca.pem -CAkey ca.key -CAcreateserial -copy_extensions copy";
    openssl(
        folder,
        &format!("x509 -req -in csr.pem {sign} -days 9 -out cert.pem"),
    );
}

fn openssl(folder: &Path, arguments: &str) {
    let output = Command::new("openssl")
        .args(arguments.split(' '))
        .current_dir(folder)
        .output()
        .expect("openssl is needed for this test: apt install openssl");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn wait_until<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited 20 s for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
