//! What shells and `man` read of this program, made from the same description as `--help`.

use std::fs;
use std::io;
use std::path::PathBuf;

use clap_complete::{Shell, generate};
use serde_json::json;

use super::Answer;
use crate::exit::Failure;

#[derive(Debug, clap::Args)]
pub(super) struct Completions {
    /// The shell.
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Debug, clap::Args)]
pub(super) struct Man {
    /// The folder, for instance /usr/local/share/man/man1; it is made where it is missing.
    folder: PathBuf,
}

pub(super) fn completions(arguments: &Completions) -> Answer {
    let mut script = Vec::new();
    generate(arguments.shell, &mut super::command(), "flannelctl", &mut script);
    let script = String::from_utf8_lossy(&script).into_owned();
    Answer::new(json!({ "shell": arguments.shell.to_string(), "script": script })).text(script)
}

pub(super) fn man(arguments: &Man) -> Result<Answer, Failure> {
    let pages = pages().map_err(|error| Failure::of(&arguments.folder, &error))?;
    fs::create_dir_all(&arguments.folder).map_err(|error| Failure::of(&arguments.folder, &error))?;
    let mut files = Vec::new();
    for (name, text) in &pages {
        let path = arguments.folder.join(name);
        fs::write(&path, text).map_err(|error| Failure::of(&path, &error))?;
        files.push(path.display().to_string());
    }
    let lines: String = files.iter().map(|file| format!("{file}: written\n")).collect();
    Ok(Answer::new(json!({ "files": files })).text(lines))
}

/// A page for the program and one for each verb, nested ones included: `flannelctl-lease-show.1`.
fn pages() -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut command = super::command().disable_help_subcommand(true);
    command.build();
    let mut pages = Vec::new();
    page(&command, "flannelctl", &mut pages)?;
    Ok(pages)
}

fn page(command: &clap::Command, name: &str, pages: &mut Vec<(String, Vec<u8>)>) -> io::Result<()> {
    // The command that was built has its display name, with hyphens, as `git-log`.
    let mut text = Vec::new();
    clap_mangen::Man::new(command.clone()).render(&mut text)?;
    pages.push((format!("{name}.1"), text));
    let verbs = command.get_subcommands().filter(|verb| !verb.is_hide_set());
    verbs.into_iter().try_for_each(|verb| page(verb, &format!("{name}-{}", verb.get_name()), pages))
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    #[test]
    fn every_shell_completes_the_verbs() {
        for shell in Shell::value_variants() {
            let script = completions(&Completions { shell: *shell }).print(super::super::Form::Text, None);
            for verb in ["host-setup", "release"] {
                assert!(script.contains(verb), "{shell}: {verb}");
            }
        }
    }

    #[test]
    fn there_is_a_manual_page_for_each_verb() {
        let pages = pages().unwrap();
        let names: Vec<_> = pages.iter().map(|(name, _)| name.as_str()).collect();
        for name in
            ["flannelctl.1", "flannelctl-plan.1", "flannelctl-lease-show.1", "flannelctl-cni-install.1"]
        {
            assert!(names.contains(&name), "{names:?}");
        }
        for (name, text) in &pages {
            let text = String::from_utf8_lossy(text);
            assert!(text.contains(".SH NAME") && text.contains(".SH SYNOPSIS"), "{name}");
        }
    }
}
