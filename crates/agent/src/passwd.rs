//! User names and home directories from a container's `/etc/passwd` (passwd(5)).
//!
//! Owns: parsing. Never: follows a path out of the container (the file is opened with `paths`).

use std::io::{BufRead, BufReader, Read};

/// Longest file that is looked at.
const MAX_BYTES: u64 = 4 << 20;

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    /// Login name.
    pub(crate) name: String,
    /// User id.
    pub(crate) uid: u32,
    /// Home directory.
    pub(crate) home: String,
}

/// All well-formed lines; others are skipped.
pub(crate) fn parse(file: impl Read) -> impl Iterator<Item = User> {
    BufReader::new(file.take(MAX_BYTES))
        .split(b'\n')
        .map_while(Result::ok)
        .filter_map(|line| {
            let line = String::from_utf8_lossy(&line);
            let fields: Vec<&str> = line.split(':').collect();
            (fields.len() >= 6 && !fields[0].is_empty()).then_some(())?;
            Some(User {
                name: fields[0].to_owned(),
                uid: fields[2].parse().ok()?,
                home: fields[5].to_owned(),
            })
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_names_and_skips_nonsense() {
        let text = "root:x:0:0:root:/root:/bin/sh\n# comment\n:x:1:1::/:\nbad:x:minus:0::/:\nalice:x:1000:1000::/home/alice\n";
        let users: Vec<User> = parse(text.as_bytes()).collect();
        assert_eq!(users.len(), 2);
        assert_eq!(
            users[1],
            User {
                name: "alice".to_owned(),
                uid: 1000,
                home: "/home/alice".to_owned()
            }
        );
    }
}
