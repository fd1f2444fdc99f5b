//! Says how much the pipe at its standard output holds; runs in a container.

use nix::fcntl::{FcntlArg, fcntl};

fn main() -> nix::Result<()> {
    let size = fcntl(std::io::stdout(), FcntlArg::F_GETPIPE_SZ)?;
    println!("{size}");
    Ok(())
}
