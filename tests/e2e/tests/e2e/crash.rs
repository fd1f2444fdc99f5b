//! `kill -9` of each process of a sandbox: every verb answers, `delete` and `gc` leave nothing.

use bulkhead_e2e::{Bundle, Lab, Running, VERB, until};
use bulkhead_model::SandboxId;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

fn sigkill(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
}

/// Runs every verb; what they say is their business, that they answer is ours.
fn every_verb_answers(lab: &Lab, id: &str) {
    for arguments in [
        vec!["state", id],
        vec!["ps", id],
        vec!["list"],
        vec!["events", "--stats", id],
        vec!["exec", id, "true"],
        vec!["pause", id],
        vec!["resume", id],
        vec!["update", "--pids-limit", "100", id],
        vec!["start", id],
        vec!["inspect", id],
        vec!["logs", id],
        vec!["kill", id, "KILL"],
    ] {
        let outcome = lab.call(&arguments).within(VERB).run();
        let errors = outcome.errors();
        assert!(!errors.contains("panicked"), "{arguments:?}: {errors}");
    }
}

fn sleeper(lab: &Lab) -> String {
    let bundle = lab.bundle().script("exec sleep 600");
    let id = lab.id();
    lab.run_detached(&bundle, &id);
    id
}

/// The VM, or the daemon that serves its files, is gone: so is the container.
fn dies_while_running(role: &str) {
    let lab = Lab::new();
    let id = sleeper(&lab);
    let stub = i32::try_from(lab.state(&id)["pid"].as_i64().unwrap()).unwrap();
    sigkill(lab.pid_of(&id, role));
    until("the container is stopped", VERB, || lab.status(&id) == "stopped");
    until("the stub has ended", VERB, || {
        !std::path::Path::new(&format!("/proc/{stub}")).exists()
            || std::fs::read_to_string(format!("/proc/{stub}/stat")).is_ok_and(|s| s.contains(") Z "))
    });
    every_verb_answers(&lab, &id);
    let _ = lab.quick(&["delete", &id]).ok();
    lab.assert_clean();
    // The same id works again.
    let bundle = lab.bundle().script("exit 3");
    let _ = lab.call(&["run", "--bundle", bundle.arg(), &id]).run().exits(3);
}

#[test]
#[ignore = "needs a VM"]
fn vmm_dies_while_running() {
    dies_while_running("vmm");
}

#[test]
#[ignore = "needs a VM"]
fn daemon_dies_while_running() {
    dies_while_running("fsd");
}

/// The guest's kernel crashes, and the agent with it.
#[test]
#[ignore = "needs a VM"]
fn guest_dies_while_running() {
    let lab = Lab::new();
    let bundle = lab.bundle().script("exec sleep 600").with(|config| {
        config["linux"]["readonlyPaths"] = json!([]);
        config["linux"]["maskedPaths"] = json!([]);
    });
    let id = lab.id();
    lab.run_detached(&bundle, &id);
    let _ = lab
        .call(&["exec", &id, "sh", "-c", "echo c > /proc/sysrq-trigger"])
        .run();
    until("the container is stopped", VERB, || lab.status(&id) == "stopped");
    every_verb_answers(&lab, &id);
    let _ = lab.quick(&["delete", &id]).ok();
}

/// C-09: a fresh supervisor takes over; the workload does not notice.
#[test]
#[ignore = "needs a VM"]
fn supervisor_dies_while_running() {
    let lab = Lab::new();
    let bundle = lab
        .bundle()
        .script("n=0; while :; do n=$((n+1)); echo $n > /count; sleep 0.05; done");
    let id = lab.id();
    lab.run_detached(&bundle, &id);
    let count = || {
        std::fs::read_to_string(bundle.rootfs().join("count"))
            .ok()
            .and_then(|text| text.trim().parse::<u64>().ok())
            .unwrap_or(0)
    };
    let vmm = lab.pid_of(&id, "vmm");
    for _ in 0..3 {
        sigkill(lab.pid_of(&id, "supervisor"));
        let before = count();
        assert_eq!(lab.status(&id), "running");
        until("it counts on", VERB, || count() > before + 3);
        assert_eq!(lab.pid_of(&id, "vmm"), vmm);
        let outcome = lab
            .call(&["exec", &id, "sh", "-c", "echo alive; exit 6"])
            .run()
            .exits(6);
        assert_eq!(outcome.text(), "alive\n");
    }
    every_verb_answers(&lab, &id);
    until("killed", VERB, || lab.status(&id) == "stopped");
    let _ = lab.quick(&["delete", &id]).ok();
}

/// Number `n` of the stream, eight bytes.
fn line(n: usize) -> String {
    format!("{n:07}\n")
}

/// Walks through what arrived: every byte of the stream in order, but for places where the last write was repeated.
/// Returns how many lines there are and how often something came again.
#[track_caller]
fn stream(arrived: &[u8]) -> (usize, usize) {
    /// As much as tells where in the stream something is.
    const SAMPLE: usize = 24;
    let lines = arrived.len() / 8 + 1;
    let sent: Vec<u8> = (1..=lines).flat_map(|n| line(n).into_bytes()).collect();
    let (mut at, mut repeated) = (0, 0);
    let mut rest = arrived;
    while !rest.is_empty() {
        let same = rest.iter().zip(&sent[at..]).take_while(|(a, b)| a == b).count();
        at += same;
        rest = &rest[same..];
        if rest.is_empty() {
            break;
        }
        repeated += 1;
        let sample = &rest[..SAMPLE.min(rest.len())];
        let back = (0..at).rev().find(|from| sent[*from..].starts_with(sample));
        at = back.unwrap_or_else(|| {
            let shown = String::from_utf8_lossy(sample).into_owned();
            panic!(
                "after {} bytes of the stream comes {shown:?}: something is lost",
                at
            )
        });
    }
    assert_eq!(at % 8, 0, "the last line is whole");
    (at / 8, repeated)
}

/// C-09: ten supervisors are killed while a container writes a numbered stream; nothing is lost, at most the last
/// write before each kill comes again, and the writer ends well.
#[test]
#[ignore = "needs a VM"]
fn c09_ten_kills_under_a_numbered_stream() {
    let lab = Lab::new();
    let script = "n=0; while ! test -e /enough; do for k in 1 2 3 4 5 6 7 8 9 10; do n=$((n+1)); \
        printf '%07d\\n' $n; done; done; exit 4";
    let bundle = lab.bundle().script(script);
    let id = lab.id();
    let out = lab.dir().join("stream");
    let running = lab
        .call(&["run", "--bundle", bundle.arg(), &id])
        .stdout(std::fs::File::create(&out).unwrap())
        .within(VERB * 4)
        .start();
    let length = || std::fs::metadata(&out).map_or(0, |meta| meta.len());
    until("it writes", VERB, || length() > 800);
    let vmm = lab.pid_of(&id, "vmm");
    for kill in 0..10 {
        sigkill(lab.pid_of(&id, "supervisor"));
        let before = length();
        assert_eq!(lab.status(&id), "running", "kill {kill}");
        until("the stream goes on", VERB, || length() > before + 800);
    }
    assert_eq!(lab.pid_of(&id, "vmm"), vmm);
    std::fs::write(bundle.rootfs().join("enough"), "").unwrap();
    let _ = running.wait().exits(4);
    let (lines, repeated) = stream(&std::fs::read(&out).unwrap());
    assert!(lines >= 1000 && lines % 10 == 0, "{lines} lines");
    assert!(repeated <= 10, "{repeated} repetitions");
    eprintln!("{lines} lines, {repeated} repetitions");
}

/// Without anyone who asks for the container, `gc` removes what a dead supervisor left.
#[test]
#[ignore = "needs a VM"]
fn gc_removes_what_a_dead_supervisor_left() {
    let lab = Lab::new();
    let id = sleeper(&lab);
    let kept = sleeper(&lab);
    // A stub, or whoever minds the supervisor, would call for a fresh one: stopped first, they notice nothing.
    let all: Vec<i32> = ["supervisor", "stub", "vmm"]
        .into_iter()
        .flat_map(|role| lab.marked(&id, role))
        .collect();
    assert!(all.len() >= 3, "{all:?}");
    for pid in &all {
        kill(Pid::from_raw(*pid), Signal::SIGSTOP).unwrap();
    }
    for pid in all {
        sigkill(pid);
    }
    let _ = lab.call(&["gc"]).run().ok();
    let _ = lab.quick(&["state", &id]).fails(&[&id]);
    assert_eq!(lab.status(&kept), "running");
    killed_before_its_first_word(&lab, &kept);
    lab.delete(&kept);
    lab.assert_clean();
    let _ = lab.call(&["gc"]).run().ok();
}

/// A supervisor that was killed when it had a plan and a lock, and had not written anything down yet: the one that takes
/// over makes what it needs itself, and that goes too.
fn killed_before_its_first_word(lab: &Lab, other: &str) {
    let id = lab.id();
    let layout = bulkhead_sandbox::Layout::new(lab.root());
    let paths = |id: &str| layout.sandbox(&SandboxId::new(id.to_owned()).unwrap());
    let (theirs, ours) = (paths(other), paths(&id));
    std::fs::create_dir(&ours.dir).unwrap();
    let plan = std::fs::read_to_string(theirs.plan()).unwrap();
    std::fs::write(ours.plan(), plan.replace(other, &id)).unwrap();
    std::fs::write(ours.lock(), "").unwrap();
    let map = bulkhead_sandbox::ContainerMap::new(layout.containers());
    let container = bulkhead_model::ContainerId::new(id.clone()).unwrap();
    let sandbox = SandboxId::new(id.clone()).unwrap();
    map.add(&container, &sandbox).unwrap();
    let _ = lab.quick(&["kill", &id, "KILL"]).fails(&[&id]);
    until("the supervisor that took over has ended", VERB, || {
        lab.marked(&id, "supervisor").is_empty()
    });
    assert!(!ours.dir.exists() && !ours.sockets.exists(), "{ours:?}");
    // The word of a verb that was killed when it had written down where its container was to be.
    map.add(&container, &sandbox).unwrap();
    let _ = lab.call(&["gc"]).run().ok();
    assert_eq!(map.sandbox_of(&container).unwrap(), None);
}

/// The process of this role as soon as the sandbox has one.
fn early(lab: &Lab, id: &str, role: &str) -> i32 {
    let mut found = Vec::new();
    until("the process is there", VERB, || {
        found = lab.marked(id, role);
        !found.is_empty()
    });
    // Of a supervisor that is already minded, the one that works.
    *found.last().unwrap()
}

/// Killed during the boot: `create` fails with a cause, and nothing is left after `delete`.
fn dies_at_boot(role: &str) {
    let lab = Lab::new();
    let bundle = lab.bundle().script("exec sleep 600");
    let id = lab.id();
    // A start from a template that fails is made up for by a boot; this is about the boot.
    let config = lab.cold_config();
    let options = ["--config", config.to_str().unwrap()];
    let creating = lab
        .call_with(&options, &["create", "--bundle", bundle.arg(), &id])
        .start();
    sigkill(early(&lab, &id, role));
    let outcome = creating.wait();
    if role != "supervisor" {
        let _ = outcome.fails(&[&id]);
    }
    let _ = lab.call(&["delete", "--force", &id]).run().ok();
    let _ = lab.call(&["gc"]).run().ok();
    lab.assert_clean();
    let _ = lab.call(&["run", "--bundle", lab.bundle().arg(), &id]).run().ok();
}

#[test]
#[ignore = "needs a VM"]
fn vmm_dies_at_boot() {
    dies_at_boot("vmm");
}

#[test]
#[ignore = "needs a VM"]
fn daemon_dies_at_boot() {
    dies_at_boot("fsd");
}

#[test]
#[ignore = "needs a VM"]
fn supervisor_dies_at_boot() {
    dies_at_boot("supervisor");
}

/// A create whose verb waits in a hook, with its stub attached, while the VM boots.
fn waiting_in_a_hook(lab: &Lab, id: &str, hook: &str) -> (Bundle, Running) {
    let script = json!([{"path": "/bin/sh", "args": ["sh", "-c", hook]}]);
    let bundle = lab
        .bundle()
        .script("exec sleep 600")
        .with(|config| config["hooks"] = json!({ "createRuntime": script }));
    let config = lab.cold_config();
    let creating = lab
        .call_with(
            &["--config", config.to_str().unwrap()],
            &["create", "--bundle", bundle.arg(), id],
        )
        .start();
    (bundle, creating)
}

/// The boot fails before the verb asks for its container: it says why all the same.
#[test]
#[ignore = "needs a VM"]
fn a_boot_that_failed_before_it_was_asked() {
    let lab = Lab::new();
    let id = lab.id();
    let state = lab.root().join("sandboxes").join(&id);
    let hook = format!("while [ -e {} ]; do sleep 0.1; done", state.display());
    let (_bundle, creating) = waiting_in_a_hook(&lab, &id, &hook);
    sigkill(early(&lab, &id, "vmm"));
    let _ = creating.wait().fails(&[&id, "the VMM ended"]);
    lab.assert_clean();
}

/// The verb is killed when its stub is attached, then the boot fails: nobody is left to end the stub but the supervisor.
#[test]
#[ignore = "needs a VM"]
fn a_stub_goes_with_a_boot_that_failed() {
    let lab = Lab::new();
    let id = lab.id();
    let (_bundle, creating) = waiting_in_a_hook(&lab, &id, "exec sleep 600");
    let mut hooks = Vec::new();
    until("the hook runs", VERB, || {
        hooks = children(creating.pid(), "sleep");
        !hooks.is_empty()
    });
    let vmm = early(&lab, &id, "vmm");
    creating.signal(Signal::SIGKILL);
    let _ = creating.wait();
    hooks.into_iter().for_each(sigkill);
    assert_eq!(lab.marked(&id, "stub").len(), 1);
    sigkill(vmm);
    until("the supervisor has ended", VERB, || {
        lab.marked(&id, "supervisor").is_empty()
    });
    assert_eq!(lab.marked(&id, "stub"), Vec::<i32>::new());
    lab.assert_clean();
}

/// The children of a process that run a program of this name.
fn children(pid: i32, name: &str) -> Vec<i32> {
    let all = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    all.split_whitespace()
        .filter(|child| {
            std::fs::read_to_string(format!("/proc/{child}/comm")).is_ok_and(|comm| comm.trim() == name)
        })
        .filter_map(|child| child.parse().ok())
        .collect()
}
