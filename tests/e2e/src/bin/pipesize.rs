//! Says how much the pipe at its standard output holds; runs in a container.

use nix::fcntl::{FcntlArg, fcntl};

fn main() {
    let size = fcntl(std::io::stdout(), FcntlArg::F_GETPIPE_SZ).expect("standard output is a pipe");
    println!("{size}");
}
