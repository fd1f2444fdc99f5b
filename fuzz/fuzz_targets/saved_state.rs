//! Saved state: any bytes are read or refused by the file's name; what is read is written and read again alike.
#![no_main]

use bulkhead_sandbox::SavedSandbox;
use libfuzzer_sys::fuzz_target;
use std::path::Path;

fuzz_target!(|bytes: &[u8]| {
    let path = Path::new("/run/state.json");
    match SavedSandbox::parse(path, bytes) {
        Ok(saved) => {
            let _ = saved.dead_snapshot();
            for container in saved.containers.values() {
                let _ = container.init.restore();
            }
            let again = serde_json::to_vec(&saved).expect("what was read can be written");
            let again = SavedSandbox::parse(path, &again).expect("what was written can be read");
            assert_eq!(again, saved);
        }
        Err(error) => assert!(error.to_string().contains("/run/state.json"), "{error}"),
    }
});
