//! A TCP server that reads HTTP/1.1 requests and answers with whatever bytes a test says.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: String,
    pub path: String,
    pub headers: Vec<(String, String)>,
    /// Which connection it came on, from 0.
    pub connection: usize,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// First and last byte asked for.
    pub fn range(&self) -> Option<(usize, usize)> {
        let (first, last) = self
            .header("range")?
            .strip_prefix("bytes=")?
            .split_once('-')?;
        Some((first.parse().ok()?, last.parse().ok()?))
    }
}

/// Bytes to send, and what to do then.
pub struct Say {
    pub bytes: Vec<u8>,
    pub then: Then,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Then {
    KeepOpen,
    Close,
    Reset,
    /// Leave the connection open and say nothing more.
    Hang,
}

impl Say {
    pub fn then(self, then: Then) -> Self {
        Self { then, ..self }
    }

    /// Only the first `length` bytes.
    pub fn cut(mut self, length: usize) -> Self {
        self.bytes.truncate(length);
        self
    }
}

/// An answer with a head and a body; nothing is added to either.
pub fn say(status: &str, headers: &[(&str, &str)], body: &[u8]) -> Say {
    let mut bytes = format!("HTTP/1.1 {status}\r\n").into_bytes();
    for (name, value) in headers {
        bytes.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(body);
    Say {
        bytes,
        then: Then::KeepOpen,
    }
}

pub fn redirect(location: &str) -> Say {
    say(
        "302 Found",
        &[("Location", location), ("Content-Length", "0")],
        b"",
    )
}

/// What a good server says of `file`, whose entity tag is `tag`.
pub fn serve(file: &[u8], tag: &str, seen: &Seen) -> Say {
    let fresh = seen
        .header("if-range")
        .is_none_or(|validator| validator == tag);
    match seen.range() {
        Some((first, last)) if fresh && seen.method == "GET" => {
            let last = last.min(file.len() - 1);
            let range = format!("bytes {first}-{last}/{}", file.len());
            let length = (last - first + 1).to_string();
            let headers = [
                ("Content-Range", range.as_str()),
                ("Content-Length", &length),
                ("ETag", tag),
            ];
            say("206 Partial Content", &headers, &file[first..=last])
        }
        _ => {
            let length = file.len().to_string();
            let headers = [("Content-Length", length.as_str()), ("ETag", tag)];
            let body = if seen.method == "HEAD" { &[] } else { file };
            say("200 OK", &headers, body)
        }
    }
}

/// The entity tag of files that do not change.
pub const TAG: &str = "\"v1\"";

/// A server whose first answer to a GET is what `first` makes of the good one.
pub async fn once_bad(file: &[u8], first: impl Fn(&Seen, Say) -> Say + Send + 'static) -> Scripted {
    let (file, mut gets) = (file.to_vec(), 0);
    Scripted::start(move |seen| {
        let good = serve(&file, TAG, seen);
        gets += usize::from(seen.method == "GET");
        if seen.method == "GET" && gets == 1 {
            first(seen, good)
        } else {
            good
        }
    })
    .await
}

/// `bytes` in chunks of seven.
pub fn chunked(bytes: &[u8]) -> Vec<u8> {
    let mut all = Vec::new();
    for part in bytes.chunks(7) {
        all.extend_from_slice(format!("{:x}\r\n", part.len()).as_bytes());
        all.extend_from_slice(part);
        all.extend_from_slice(b"\r\n");
    }
    all.extend_from_slice(b"0\r\n\r\n");
    all
}

/// The server. Ends with the test that holds it.
pub struct Scripted {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: JoinHandle<()>,
}

impl Scripted {
    pub async fn start(answer: impl FnMut(&Seen) -> Say + Send + 'static) -> Self {
        Self::start_at("127.0.0.1", answer).await
    }

    pub async fn start_at(host: &str, answer: impl FnMut(&Seen) -> Say + Send + 'static) -> Self {
        let listener = TcpListener::bind((host, 0)).await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let task = tokio::spawn(accept(listener, seen.clone(), Arc::new(Mutex::new(answer))));
        Self {
            address,
            seen,
            task,
        }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen
            .lock()
            .expect("no test panics while it holds this")
            .clone()
    }

    pub fn methods(&self) -> Vec<String> {
        self.seen().into_iter().map(|seen| seen.method).collect()
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept<A: FnMut(&Seen) -> Say + Send + 'static>(
    listener: TcpListener,
    seen: Arc<Mutex<Vec<Seen>>>,
    answer: Arc<Mutex<A>>,
) {
    let mut connections = JoinSet::new();
    let mut count = 0;
    while let Ok((stream, _)) = listener.accept().await {
        connections.spawn(converse(stream, count, seen.clone(), answer.clone()));
        count += 1;
    }
}

async fn converse<A: FnMut(&Seen) -> Say>(
    mut stream: TcpStream,
    connection: usize,
    seen: Arc<Mutex<Vec<Seen>>>,
    answer: Arc<Mutex<A>>,
) {
    while let Some(request) = read_request(&mut stream, connection).await {
        seen.lock()
            .expect("no panic while held")
            .push(request.clone());
        let say = (answer.lock().expect("no panic while held"))(&request);
        if stream.write_all(&say.bytes).await.is_err() {
            return;
        }
        match say.then {
            Then::KeepOpen => {}
            Then::Close => return,
            Then::Reset => {
                let _ = stream.set_zero_linger();
                return;
            }
            Then::Hang => std::future::pending().await,
        }
    }
}

pub async fn read_request(stream: &mut TcpStream, connection: usize) -> Option<Seen> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let text = String::from_utf8(head).ok()?;
    let mut lines = text.lines();
    let mut first = lines.next()?.split(' ');
    let (method, path) = (first.next()?.to_owned(), first.next()?.to_owned());
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    Some(Seen {
        method,
        path,
        headers,
        connection,
    })
}
