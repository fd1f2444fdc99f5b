//! One line from QEMU, parsed.
//!
//! Owns: which shapes of JSON are which message. Never: I/O. Called by the client's reader for every line;
//! anything that is not a message is [`Message::Garbage`], never a panic.

use serde::Deserialize;
use serde_json::Value;

/// Why QEMU refused a command.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Refusal {
    /// QMP error class: `GenericError`, `DeviceNotFound`, `CommandNotFound`, `DeviceNotActive`, `KVMMissingCap`.
    pub class: String,
    /// QEMU's words, for the reader only.
    #[serde(rename = "desc")]
    pub description: String,
}

/// Something that happened in the VM.
#[derive(Debug, Clone, PartialEq)]
pub struct QmpEvent {
    /// Its name, for example `DEVICE_DELETED`.
    pub name: String,
    /// What goes with it; `Null` when there is nothing.
    pub data: Value,
}

/// A line from QEMU.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// The first line after a connect.
    Greeting,
    /// A command was done.
    Done {
        /// Id of the command.
        id: u64,
        /// Its result.
        value: Value,
    },
    /// A command was refused.
    Refused {
        /// Id of the command.
        id: u64,
        /// Why.
        refusal: Refusal,
    },
    /// An event.
    Event(QmpEvent),
    /// Not a message: not JSON, not an object, no known key, or an answer without a number as its id.
    Garbage,
}

#[derive(Deserialize)]
struct Raw {
    #[serde(rename = "QMP")]
    greeting: Option<Value>,
    id: Option<Value>,
    #[serde(default, rename = "return", deserialize_with = "present")]
    done: Option<Value>,
    error: Option<Refusal>,
    event: Option<String>,
    #[serde(default)]
    data: Value,
}

/// A `return` of null is an answer too; plain `Option` would take it for absent.
fn present<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(from).map(Some)
}

impl Message {
    /// Parses one line, with or without its line end.
    #[must_use]
    pub fn parse(line: &[u8]) -> Self {
        let Ok(raw) = serde_json::from_slice::<Raw>(line) else {
            return Self::Garbage;
        };
        if let Some(name) = raw.event {
            return Self::Event(QmpEvent { name, data: raw.data });
        }
        match (
            raw.greeting,
            raw.id.as_ref().and_then(Value::as_u64),
            raw.done,
            raw.error,
        ) {
            (Some(_), ..) => Self::Greeting,
            (None, Some(id), Some(value), None) => Self::Done { id, value },
            (None, Some(id), None, Some(refusal)) => Self::Refused { id, refusal },
            _ => Self::Garbage,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn the_four_shapes() {
        assert_eq!(
            Message::parse(br#"{"QMP": {"version": {"qemu": {"major": 7}}, "capabilities": ["oob"]}}"#),
            Message::Greeting
        );
        assert_eq!(
            Message::parse(b"{\"return\": {\"a\": 1}, \"id\": 7}\r\n"),
            Message::Done {
                id: 7,
                value: json!({"a": 1})
            }
        );
        assert_eq!(
            Message::parse(br#"{"return": null, "id": 8}"#),
            Message::Done {
                id: 8,
                value: Value::Null
            }
        );
        assert_eq!(
            Message::parse(br#"{"id": 9, "error": {"class": "DeviceNotFound", "desc": "no 'x'"}}"#),
            Message::Refused {
                id: 9,
                refusal: Refusal {
                    class: "DeviceNotFound".into(),
                    description: "no 'x'".into()
                }
            }
        );
        assert_eq!(
            Message::parse(br#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"}"#),
            Message::Event(QmpEvent {
                name: "STOP".into(),
                data: Value::Null
            })
        );
    }

    #[test]
    fn what_is_no_message() {
        for line in [
            "",
            "\0",
            "[]",
            "{}",
            "null",
            "{\"return\": {}}",
            "{\"return\": {}, \"id\": \"7\"}",
            "{\"return\": {}, \"id\": -1}",
            "{\"error\": {\"class\": \"GenericError\", \"desc\": \"JSON parse error\"}}",
            "{\"error\": 3, \"id\": 1}",
            "{\"return\": {}, \"error\": {\"class\": \"a\", \"desc\": \"b\"}, \"id\": 1}",
            "{\"event\": 3}",
            "{\"return\": {}, \"id\": 1",
        ] {
            assert_eq!(Message::parse(line.as_bytes()), Message::Garbage, "{line}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_parse_without_a_panic(line in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Message::parse(&line);
        }

        #[test]
        fn a_cut_answer_is_garbage(id in any::<u64>(), text in ".{0,40}", cut in 1usize..30) {
            let line = json!({"return": {"text": text}, "id": id}).to_string();
            let cut = cut.min(line.len());
            prop_assert_eq!(Message::parse(&line.as_bytes()[..line.len() - cut]), Message::Garbage);
            prop_assert_eq!(
                Message::parse(line.as_bytes()),
                Message::Done { id, value: json!({"text": text}) }
            );
        }
    }
}
