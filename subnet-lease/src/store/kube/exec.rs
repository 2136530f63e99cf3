//! Credentials from a program, as kubeconfigs of clouds have it.

use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use tokio::process::Command;

use super::kubeconfig::{Access, Exec};

/// How long the program may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// It prints no more than this, in bytes.
const LARGEST: usize = 1 << 20;

/// What the program printed.
#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Credentials {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    client_certificate_data: Option<String>,
    #[serde(default)]
    client_key_data: Option<String>,
}

#[derive(Deserialize)]
struct Printed {
    status: Option<Credentials>,
}

impl Credentials {
    pub(super) fn put_into(self, access: &mut Access) {
        access.token = self.token.filter(|token| token.bytes().all(|byte| byte.is_ascii_graphic()));
        let pair = self.client_certificate_data.zip(self.client_key_data);
        access.identity = pair.map(|(cert, key)| (cert.into_bytes(), key.into_bytes()));
    }
}

/// Runs the program. The error is a sentence.
pub(super) async fn run(exec: &Exec) -> Result<Credentials, String> {
    let said = |why: String| format!("credential plugin {}: {why}", exec.command);
    let asked =
        json!({"apiVersion": exec.api_version, "kind": "ExecCredential", "spec": {"interactive": false}});
    let variables = exec.env.iter().flatten().map(|variable| (&variable.name, &variable.value));
    let running = Command::new(&exec.command)
        .args(exec.args.iter().flatten())
        .envs(variables)
        .env("KUBERNETES_EXEC_INFO", asked.to_string())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(PATIENCE, running).await;
    let output = output.map_err(|_| said(format!("no answer in {} s", PATIENCE.as_secs())))?;
    let output = output.map_err(|error| said(error.to_string()))?;
    if !output.status.success() {
        let last = String::from_utf8_lossy(&output.stderr);
        let last: String = last.lines().last().unwrap_or_default().chars().take(200).collect();
        return Err(said(format!("{}: {last}", output.status)));
    }
    if output.stdout.len() > LARGEST {
        return Err(said("it prints more than 1 MiB".to_owned()));
    }
    let printed: Printed = serde_json::from_slice(&output.stdout)
        .map_err(|_| said("what it prints is not an ExecCredential".to_owned()))?;
    printed.status.ok_or_else(|| said("what it prints has no status".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Exec {
        Exec {
            api_version: "client.authentication.k8s.io/v1".to_owned(),
            command: "/bin/sh".to_owned(),
            args: Some(vec!["-c".to_owned(), script.to_owned()]),
            env: None,
        }
    }

    #[tokio::test]
    async fn a_program_prints_a_token_or_its_fault_is_named() {
        let good = run(&shell(r#"echo '{"kind":"ExecCredential","status":{"token":"t"}}'"#)).await;
        let mut access = Access::default();
        good.unwrap_or_else(|why| panic!("{why}")).put_into(&mut access);
        assert_eq!(access.token.as_deref(), Some("t"));
        for (script, fault) in [
            ("echo first >&2; echo last >&2; exit 3", "exit status: 3: last"),
            ("echo x", "what it prints is not an ExecCredential"),
            ("echo '{}'", "what it prints has no status"),
        ] {
            let said = run(&shell(script)).await.err().unwrap();
            assert_eq!(said, format!("credential plugin /bin/sh: {fault}"));
        }
    }
}
