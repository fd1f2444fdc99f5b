//! Mount tables: any bytes are parsed, or the error names the line.
#![no_main]

use bulkhead_host::mount;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    match mount::parse(text) {
        Ok(mounts) => assert!(mounts.len() <= text.len()),
        Err(error) => assert!(error.to_string().contains("line"), "{error}"),
    }
});
