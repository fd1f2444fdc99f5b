//! The mount table: `/proc/<pid>/mountinfo` (proc_pid_mountinfo(5)).
//!
//! Owns: parsing, octal escapes included. Never: guesses about lines it does not understand: they are
//! errors.

use super::facts::DeviceNumber;
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// Why the mount table could not be read.
#[derive(Debug, thiserror::Error)]
pub enum MountInfoError {
    /// The file cannot be read.
    #[error("reading {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A line is not as documented.
    #[error("mountinfo line {line}: expected {expected}, found {text:?}")]
    Line {
        /// From 1.
        line: usize,
        /// The missing part.
        expected: &'static str,
        /// The line.
        text: String,
    },
}

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountInfo {
    /// Id of the mount, reused after unmounting.
    pub id: u32,
    /// Id of the mount it is on.
    pub parent: u32,
    /// Device of the files in it.
    pub device: DeviceNumber,
    /// What of the file system is mounted, as a path in it.
    pub root: PathBuf,
    /// Where it is mounted, seen from the reader's root.
    pub target: PathBuf,
    /// Per-mount options: `ro`, `nosuid`, ….
    pub options: Vec<String>,
    /// Propagation: `shared:N`, `master:N`, …; empty for a private mount.
    pub tags: Vec<String>,
    /// File system type.
    pub fs_type: String,
    /// Source as the file system reports it.
    pub source: OsString,
    /// Per-file-system options.
    pub super_options: Vec<String>,
}

impl MountInfo {
    /// Whether the mount is in a peer group.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.tags.iter().any(|tag| tag.starts_with("shared:"))
    }
}

/// The mounts of a process, in the order they were made; `None` is this thread's own mount namespace.
///
/// # Errors
/// [`MountInfoError`].
pub fn read(pid: Option<i32>) -> Result<Vec<MountInfo>, MountInfoError> {
    let path = match pid {
        Some(pid) => PathBuf::from(format!("/proc/{pid}/mountinfo")),
        None => PathBuf::from("/proc/thread-self/mountinfo"),
    };
    let text = std::fs::read(&path).map_err(|source| MountInfoError::Read { path, source })?;
    parse(&text)
}

/// Parses the text of a mountinfo file.
///
/// # Errors
/// [`MountInfoError::Line`] naming the line.
pub fn parse(text: &[u8]) -> Result<Vec<MountInfo>, MountInfoError> {
    text.split(|b| *b == b'\n')
        .enumerate()
        .filter(|(_, line)| !line.is_empty())
        .map(|(index, line)| {
            parse_line(line).map_err(|expected| MountInfoError::Line {
                line: index + 1,
                expected,
                text: String::from_utf8_lossy(line).into_owned(),
            })
        })
        .collect()
}

fn parse_line(line: &[u8]) -> Result<MountInfo, &'static str> {
    let mut fields = line.split(|b| *b == b' ');
    let mut next = |expected: &'static str| fields.next().ok_or(expected);
    let id = number(next("mount id")?, "mount id")?;
    let parent = number(next("parent id")?, "parent id")?;
    let device = next("major:minor")?;
    let colon = device.iter().position(|b| *b == b':').ok_or("major:minor")?;
    let device = DeviceNumber {
        major: number(device.get(..colon).unwrap_or_default(), "major:minor")?,
        minor: number(device.get(colon + 1..).unwrap_or_default(), "major:minor")?,
    };
    let root = path(next("root")?);
    let target = path(next("mount point")?);
    let options = list(next("mount options")?);
    let mut tags = Vec::new();
    loop {
        match next("separator -")? {
            b"-" => break,
            tag => tags.push(text(tag)),
        }
    }
    let fs_type = text(next("file system type")?);
    // An empty source is an empty field, and an old kernel leaves the rest out.
    let source = OsString::from_vec(unescape(next("source")?));
    let super_options = list(next("super options").unwrap_or_default());
    Ok(MountInfo {
        id,
        parent,
        device,
        root,
        target,
        options,
        tags,
        fs_type,
        source,
        super_options,
    })
}

fn number(field: &[u8], expected: &'static str) -> Result<u32, &'static str> {
    std::str::from_utf8(field)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or(expected)
}

fn path(field: &[u8]) -> PathBuf {
    Path::new(&OsString::from_vec(unescape(field))).to_owned()
}

fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(&unescape(field)).into_owned()
}

fn list(field: &[u8]) -> Vec<String> {
    field
        .split(|b| *b == b',')
        .filter(|option| !option.is_empty())
        .map(text)
        .collect()
}

/// The kernel writes blank, tab, newline, `\` and `#` as `\ooo`; anything else after a `\` is literal.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        if let [
            b'\\',
            a @ b'0'..=b'3',
            b @ b'0'..=b'7',
            c @ b'0'..=b'7',
            tail @ ..,
        ] = rest
        {
            bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
            rest = tail;
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_line_with_tags_escapes_and_commas() {
        let line =
            b"36 35 98:0 /m\\040t1 /mnt\\134x rw,noatime shared:1 master:2 - ext3 /dev/ro\\011ot rw,errors=continue\n";
        let all = parse(line).unwrap();
        assert_eq!(
            all,
            [MountInfo {
                id: 36,
                parent: 35,
                device: DeviceNumber { major: 98, minor: 0 },
                root: "/m t1".into(),
                target: "/mnt\\x".into(),
                options: vec!["rw".into(), "noatime".into()],
                tags: vec!["shared:1".into(), "master:2".into()],
                fs_type: "ext3".into(),
                source: "/dev/ro\tot".into(),
                super_options: vec!["rw".into(), "errors=continue".into()],
            }]
        );
        assert!(all[0].is_shared());
    }

    #[test]
    fn a_line_cut_short_is_an_error_with_its_number() {
        let text = "1 2 0:1 / / rw - tmpfs none rw\n36 35 98:0 / /x rw shared:1\n";
        let error = parse(text.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains("separator"), "{error}");
    }

    #[test]
    fn the_real_table_has_a_root() {
        assert!(read(None).unwrap().iter().any(|m| m.target == Path::new("/")));
    }

    fn escape(name: &[u8]) -> Vec<u8> {
        name.iter()
            .flat_map(|b| match b {
                b' ' | b'\t' | b'\n' | b'\\' | b'#' => format!("\\{b:03o}").into_bytes(),
                b => vec![*b],
            })
            .collect()
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn any_name_the_kernel_escapes_comes_back(name in proptest::collection::vec(1_u8..=255, 1..60)) {
            let mut line = b"1 2 0:3 / /".to_vec();
            line.extend(escape(&name));
            line.extend(b" rw - tmpfs none rw\n");
            let mut expected = b"/".to_vec();
            expected.extend(&name);
            let parsed = parse(&line).unwrap();
            prop_assert_eq!(parsed[0].target.clone().into_os_string().into_vec(), expected);
        }
    }
}
