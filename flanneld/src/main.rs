//! `flanneld` is the daemon, and with the word `store` the embedded store; by the name of `flannelctl` (a link) it is
//! the program for people.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use flanneld::exit::{Exit, Failure};
use flanneld::{admin, daemon};

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    let program = arguments.next().unwrap_or_default();
    let program = Path::new(&program).file_name().unwrap_or_default();
    let (name, ended) = if program == "flannelctl" {
        ("flannelctl", texts(arguments).and_then(|arguments| admin::main(&arguments)))
    } else {
        ("flanneld", texts(arguments).and_then(|arguments| daemon::main(&arguments)))
    };
    match ended {
        Ok(exit) => exit.into(),
        Err(failure) => {
            for line in failure.message.lines() {
                eprintln!("{name}: {line}");
            }
            failure.exit.into()
        }
    }
}

fn texts(arguments: impl Iterator<Item = OsString>) -> Result<Vec<String>, Failure> {
    let text = |argument: OsString| {
        argument.into_string().map_err(|other| Failure::new(Exit::Invalid, format!("{other:?}: not UTF-8")))
    };
    arguments.map(text).collect()
}
