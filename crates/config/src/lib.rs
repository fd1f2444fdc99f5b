//! bulkhead-config.
