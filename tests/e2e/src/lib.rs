//! Real-VM tests.
