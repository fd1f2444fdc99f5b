//! Build, set-up, test and bench commands of the workspace.

fn main() {}
