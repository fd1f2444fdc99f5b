//! bulkhead.

fn main() {}
