//! `budget PRODUCTS`: checks the workspace and the CNI plugin of that folder (`tests::budget`, `tests::arrows`), prints the
//! figures, and fails when a rule is broken.

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use tests::budget::{self, PLUGIN_MAX_CRATES, PLUGIN_MAX_SIZE, Workspace};

fn main() -> anyhow::Result<ExitCode> {
    let products =
        std::env::args_os().nth(1).context("usage: budget PRODUCTS (the folder that tests/build prints)")?;
    let program = Path::new(&products).join("cni-plugin");
    let program = std::fs::read(&program).with_context(|| program.display().to_string())?;
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let workspace = Workspace::read(root)?;
    let crates = budget::plugin_crates(root)?;

    let mut broken = workspace.stray_members();
    broken.extend(workspace.wrong_arrows());
    broken.extend(tests::arrows::broken(root)?);
    broken.extend(budget::plugin_overweight(&crates));
    broken.extend(budget::plugin_unfit(&program));

    let mut out = std::io::stdout().lock();
    writeln!(out, "cni-plugin: {} crates of {PLUGIN_MAX_CRATES}", crates.len())?;
    writeln!(out, "cni-plugin: {} bytes of {PLUGIN_MAX_SIZE}", program.len())?;
    for rule in &broken {
        writeln!(out, "broken: {rule}")?;
    }
    Ok(ExitCode::from(u8::from(!broken.is_empty())))
}
