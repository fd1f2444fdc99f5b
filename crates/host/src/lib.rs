//! bulkhead-host.
