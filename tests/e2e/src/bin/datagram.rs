//! UDP between pods; runs in containers and on the host.
//!
//! `datagram answer <port>` sends everything back, and says so once it listens; `datagram ask <address> <bytes>` sends
//! that much and fails unless the same comes back.

use std::io::Write;
use std::net::{Ipv6Addr, UdpSocket};
use std::time::Duration;

/// Longest an answer may take.
const DEADLINE: Duration = Duration::from_secs(60);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["answer", port] => {
            // IPv4 as well.
            let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port.parse()?))?;
            let mut out = std::io::stdout();
            writeln!(out, "listening")?;
            out.flush()?;
            let mut message = vec![0; 1 << 16];
            loop {
                let (length, from) = socket.recv_from(&mut message)?;
                let _ = socket.send_to(&message[..length], from)?;
            }
        }
        ["ask", address, bytes] => {
            let any = if address.starts_with('[') {
                "[::]:0"
            } else {
                "0.0.0.0:0"
            };
            let socket = UdpSocket::bind(any)?;
            socket.set_read_timeout(Some(DEADLINE))?;
            socket.connect(*address)?;
            let sent: Vec<u8> = (0..bytes.parse::<u32>()?).map(|n| (n % 251) as u8).collect();
            let _ = socket.send(&sent)?;
            let mut answer = vec![0; 1 << 16];
            let length = socket.recv(&mut answer)?;
            if answer[..length] != sent {
                return Err(format!("{length} other bytes came back").into());
            }
            Ok(())
        }
        _ => Err("expected: answer <port>, or ask <address> <bytes>".into()),
    }
}
