//! Whom webhooks tell: prints the body of each POST as a line of its own.
//!
//! `branchline-told PORT REFUSED`: listens on all addresses. What it was told counts once it is printed; of
//! REFUSED posts one is answered with 503 all the same, as by a server that dies over its answer.
//! Prints `ready` once it listens, and runs until it is killed.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};

use anyhow::{Context, Result, bail};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [port, refused] = args.as_slice() else {
        bail!("usage: PORT REFUSED");
    };
    let (port, refused): (u16, u64) = (port.parse()?, refused.parse()?);
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
    println!("ready");
    let mut posts = 0;
    for stream in listener.incoming() {
        // Who is killed in the middle of its post has told nothing.
        if let Ok(stream) = stream
            && let Ok(body) = body(&stream)
        {
            posts += 1;
            println!("{body}");
            let answered = answer(stream, posts % refused == 0);
            answered.unwrap_or_else(|error| eprintln!("{error}"));
        }
    }
    Ok(())
}

fn body(stream: &TcpStream) -> Result<String> {
    let mut reader = BufReader::new(stream);
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.split_once(':') else {
            if line.starts_with("POST ") {
                continue;
            }
            break;
        };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    String::from_utf8(body).context("a body of text")
}

fn answer(mut stream: TcpStream, refuses: bool) -> Result<()> {
    let status = if refuses {
        "503 Service Unavailable"
    } else {
        "204 No Content"
    };
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    Ok(stream.write_all(head.as_bytes())?)
}
