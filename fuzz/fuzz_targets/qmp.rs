//! Replies of QEMU: any line is a message or garbage; an answer has the id it was given.
#![no_main]

use bulkhead_vmm::qmp::Message;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    for line in bytes.split(|byte| *byte == b'\n') {
        if let Message::Done { id, .. } | Message::Refused { id, .. } = Message::parse(line) {
            assert!(String::from_utf8_lossy(line).contains(&id.to_string()));
        }
    }
});
