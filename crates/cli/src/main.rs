//! bulkhead.

mod fsd;
mod guest;
mod stub;

use std::process::ExitCode;

#[derive(clap::Parser)]
struct Guest {
    #[command(subcommand)]
    command: guest::GuestCommand,
}

#[derive(clap::Parser)]
struct Fsd {
    #[command(flatten)]
    arguments: fsd::FsdArgs,
}

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    match arguments.next().as_deref().and_then(|a| a.to_str()) {
        Some("fsd") => {
            let parsed = <Fsd as clap::Parser>::parse_from(std::env::args_os().skip(1));
            match fsd::run(&parsed.arguments) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    eprintln!("{error}");
                    ExitCode::FAILURE
                }
            }
        }
        Some("guest") => {
            let parsed = <Guest as clap::Parser>::parse_from(std::env::args_os().skip(1));
            match guest::run(&parsed.command, &mut std::io::stdout()) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    eprintln!("{error}");
                    ExitCode::FAILURE
                }
            }
        }
        Some("stub") => stub::main(3),
        _ => ExitCode::FAILURE,
    }
}
