//! Waiting with a deadline: for a line of output, for something outside any process of ours.

use std::io::{BufRead, BufReader, Read};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// Lines of a stream, each awaited with a deadline.
#[derive(Debug)]
pub struct Lines {
    lines: Receiver<String>,
    seen: Vec<String>,
}

impl Lines {
    /// Reads `stream` in the background until its end.
    pub fn of(stream: impl Read + Send + 'static) -> Self {
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        Self {
            lines,
            seen: Vec::new(),
        }
    }

    /// The next line that contains `word`; panics after `within` or at the end of the stream.
    #[track_caller]
    pub fn expect(&mut self, word: &str, within: Duration) -> String {
        let end = Instant::now() + within;
        loop {
            match self
                .lines
                .recv_timeout(end.saturating_duration_since(Instant::now()))
            {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if line.contains(word) {
                        return line;
                    }
                }
                Err(why) => panic!("no line with {word:?} ({why}); seen: {:#?}", self.seen),
            }
        }
    }

    /// Whether a line that contains `word` has come; it counts as seen then.
    pub fn is_there(&mut self, word: &str) -> bool {
        while let Ok(line) = self.lines.try_recv() {
            self.seen.push(line.clone());
            if line.contains(word) {
                return true;
            }
        }
        false
    }

    /// Waits for the end of the stream; returns the lines that were not asked for.
    #[track_caller]
    pub fn rest(mut self, within: Duration) -> Vec<String> {
        let end = Instant::now() + within;
        let mut rest = Vec::new();
        loop {
            match self
                .lines
                .recv_timeout(end.saturating_duration_since(Instant::now()))
            {
                Ok(line) => {
                    self.seen.push(line.clone());
                    rest.push(line);
                }
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => return rest,
                Err(why) => panic!("the stream did not end ({why}); seen: {:#?}", self.seen),
            }
        }
    }
}

/// Waits until `condition` holds, for state that offers no event; panics after `within`.
#[track_caller]
pub fn until(what: &str, within: Duration, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + within;
    while !condition() {
        assert!(Instant::now() < end, "{what}: not within {within:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
