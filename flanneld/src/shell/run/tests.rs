use std::future::{pending, ready};

use super::*;

/// How long stopping takes, on a clock that jumps, when these inputs arrive after a second.
fn stopping(late: Vec<Input>, again: impl Future<Output = ()>) -> Duration {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    runtime.unwrap().block_on(async {
        let (inbox, mut inputs) = mpsc::channel(4);
        let other = inbox.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            for input in late {
                other.send(input).await.unwrap();
            }
        });
        let before = Instant::now();
        last_apply(&mut inputs, again).await;
        drop(inbox);
        before.elapsed()
    })
}

#[test]
fn stopping_waits_for_the_running_apply_and_for_nothing_else() {
    let took = stopping(vec![Input::File, Input::Applied(Vec::new())], pending());
    assert!((1000..1100).contains(&took.as_millis()), "{took:?}");
}

#[test]
fn a_kernel_that_hangs_holds_up_stopping_for_two_seconds_at_most() {
    let took = stopping(vec![Input::File], pending());
    assert!((2000..2100).contains(&took.as_millis()), "{took:?}");
}

#[test]
fn a_second_signal_ends_the_daemon_at_once() {
    assert!(stopping(vec![Input::Applied(Vec::new())], ready(())) < Duration::from_millis(100));
}

#[test]
fn ready_again_is_logged_only_after_unready() {
    let (green, amber) = (
        Readiness { ready: true, reasons: vec![] },
        Readiness { ready: true, reasons: vec!["stale: no store answers".to_owned()] },
    );
    assert_eq!(announcement(false, false, &green), "ready");
    assert_eq!(announcement(false, true, &green), "ready again");
    assert_eq!(announcement(true, true, &amber), "ready, with warnings: stale: no store answers");
    assert_eq!(announcement(true, true, &green), "ready, without warnings");
    assert_eq!(
        announcement(true, true, &Readiness { ready: false, ..amber }),
        "not ready: stale: no store answers"
    );
}
