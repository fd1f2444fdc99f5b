//! Configuration files: any text is read, or every error names the file.
#![no_main]

use bulkhead_config::Config;
use libfuzzer_sys::fuzz_target;
use std::path::Path;

fuzz_target!(|text: &str| {
    if let Err(errors) = Config::parse(Path::new("fuzz.toml"), text) {
        assert!(!errors.is_empty());
        for error in errors {
            let text = error.to_string();
            assert!(!text.is_empty() && !text.contains('\n'), "{text:?}");
        }
    }
});
