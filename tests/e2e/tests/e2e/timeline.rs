//! Where the time of a sandbox went, on a real VM.

use bulkhead_e2e::Lab;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;

fn operations<'a>(timeline: &'a Value, name: &str) -> Vec<&'a Value> {
    let all = timeline["operations"].as_array().unwrap();
    all.iter().filter(|one| one["name"] == name).collect()
}

#[track_caller]
fn operation<'a>(timeline: &'a Value, name: &str) -> &'a Value {
    let found = operations(timeline, name);
    assert_eq!(found.len(), 1, "{name}: {timeline:#}");
    found[0]
}

fn times(what: &Value) -> (u64, u64) {
    let begin = what["begin_ns"].as_u64().unwrap();
    let end = what["end_ns"]
        .as_u64()
        .unwrap_or_else(|| panic!("it goes on: {what:#}"));
    assert!(begin <= end, "{what:#}");
    (begin, end)
}

fn spans(operation: &Value) -> impl Iterator<Item = &Value> {
    operation["spans"].as_array().unwrap().iter()
}

#[track_caller]
fn span(operation: &Value, name: &str) -> (u64, u64) {
    let found = spans(operation).find(|span| span["name"] == name);
    times(found.unwrap_or_else(|| panic!("no {name:?} in {operation:#}")))
}

fn lanes(timeline: &Value) -> BTreeSet<String> {
    let all = timeline["operations"].as_array().unwrap();
    all.iter()
        .flat_map(spans)
        .map(|span| span["lane"].as_str().unwrap().to_owned())
        .collect()
}

/// What another program makes of a picture: its width in pixels, from the PNG's first chunk.
#[track_caller]
fn drawn_width(lab: &Lab, svg: &Path) -> u32 {
    let png = svg.with_extension("png");
    let arguments = [svg.to_str().unwrap(), "-o", png.to_str().unwrap()];
    let _ = lab.program("rsvg-convert", &arguments).run().ok();
    let bytes = std::fs::read(png).unwrap();
    assert!(bytes.starts_with(b"\x89PNG\r\n\x1a\n"));
    u32::from_be_bytes(bytes[16..20].try_into().unwrap())
}

/// From the first command to the last: every lane is there, what is inside something else is not longer than it, host
/// and guest agree, and after the end all of it can still be looked at.
#[test]
#[ignore = "needs a VM"]
fn of_a_start_and_a_stop() {
    let lab = Lab::new();
    let hook = |word: &str| json!([{"path": "/bin/true", "args": ["true", word]}]);
    let bundle = lab.bundle().script("exec sleep 600").with(|config| {
        config["hooks"] = json!({ "createRuntime": hook("a"), "poststart": hook("b") });
    });
    let id = lab.id();
    let before = bulkhead_host::clock::boottime_ns();
    // A boot: what goes on from a template has no row for its kernel.
    let cold = lab.cold_config();
    let creating = ["create", "--bundle", bundle.arg(), &id];
    let _ = lab
        .call_with(&["--config", cold.to_str().unwrap()], &creating)
        .run()
        .ok();
    let _ = lab.call(&["start", &id]).run().ok();
    let _ = lab.call(&["exec", &id, "true"]).run().ok();
    let after = bulkhead_host::clock::boottime_ns();

    let svg = lab.dir().join("start.svg");
    let shown = lab
        .quick(&["timeline", "--svg", svg.to_str().unwrap(), &id])
        .ok()
        .text();
    for words in [
        "AT ms",
        &format!("create {id}"),
        "  boot",
        "kernel, until its first process",
    ] {
        assert!(shown.contains(words), "no {words:?} in\n{shown}");
    }
    assert_eq!(drawn_width(&lab, &svg), 1200);
    let text = std::fs::read_to_string(&svg).unwrap();
    assert!(
        text.contains("<title>guest: kernel, until its first process (at "),
        "{text}"
    );

    let live = lab.quick(&["timeline", "--format", "json", &id]).ok().json();
    let all = [
        "cli",
        "fsd",
        "guest",
        "hooks",
        "network",
        "stub",
        "supervisor",
        "vmm",
    ];
    assert_eq!(lanes(&live), all.map(str::to_owned).into());
    let (create, boot) = (operation(&live, "create"), operation(&live, "boot"));
    // The clock of the command is known to a tick.
    assert!(
        times(create).0 + 20_000_000 > before && times(create).1 < after,
        "{before} {after} {create:#}"
    );
    assert!(times(create).0 < times(boot).0 && times(boot).1 < times(create).1);
    // One after the other, and together no longer than the boot.
    let steps = ["prepare the host", "start the VM", "boot the guest"].map(|name| span(boot, name));
    assert!(steps[0].1 <= steps[1].0 && steps[1].1 <= steps[2].0, "{boot:#}");
    let sum: u64 = steps.iter().map(|(begin, end)| end - begin).sum();
    let whole = times(boot).1 - times(boot).0;
    assert!(sum <= whole && sum > whole / 2, "{sum} of {whole}: {boot:#}");
    // The guest's own words, between what the host saw before and after.
    let error = live["guest_error_ns"].as_u64().unwrap();
    assert!(error < 2_000_000_000, "{error}");
    let (go, kernel, agent) = (
        span(boot, "let the processors go"),
        span(boot, "kernel, until its first process"),
        span(boot, "agent comes up"),
    );
    let hello = span(boot, "wait for the agent's hello");
    assert!(go.0 == kernel.0 && kernel.1 == agent.0, "{boot:#}");
    assert!(
        kernel.1 - kernel.0 > 10_000_000,
        "a kernel takes longer than that: {boot:#}"
    );
    assert!(agent.1 <= hello.1 + error, "{boot:#}");
    let inside = |operation: &Value, inner: &str, outer: &str| {
        let ((from, to), (begin, end)) = (span(operation, inner), span(operation, outer));
        assert!(begin <= from && to <= end, "{inner} in {outer}: {operation:#}");
    };
    inside(boot, "mount what is shared", "configure the guest");
    inside(create, "clone, mounts, pivot", "create it in the guest");
    inside(operation(&live, "start"), "let it run", "start it in the guest");
    inside(
        operation(&live, "exec"),
        "clone, join, exec",
        "start it in the guest",
    );
    assert!(span(create, "createRuntime").1 <= span(create, "create it in the guest").0);
    assert!(
        span(operation(&live, "start"), "poststart").0 >= span(operation(&live, "start"), "let it run").0
    );

    // Nothing asked of a supervisor that is not there any more.
    let file = lab.root().join("sandboxes").join(&id).join("timeline.json");
    let written: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    assert_eq!(operation(&written, "boot"), boot);

    for bad in ["/nonexistent/x.svg", "/proc/x.svg"] {
        let refused = lab.quick(&["timeline", "--svg", bad, &id]);
        let _ = refused
            .fails(&["--svg", bad, "expected a file that can be written"])
            .exits(1);
    }

    let _ = lab.call(&["kill", &id, "KILL"]).run().ok();
    let _ = lab.call(&["delete", "--force", &id]).run().ok();
    let gone = lab.quick(&["timeline", "--format", "json", &id]).ok().json();
    assert_eq!(operation(&gone, "boot"), boot);
    let ended = operation(&gone, "delete");
    let order = ["end QEMU", "undo: mount", "undo: directory"].map(|name| span(ended, name));
    assert!(order.is_sorted_by(|one, next| one.1 <= next.0), "{ended:#}");
    assert_eq!(operations(&gone, "kill").len(), 1);
    // It is looked at like a live one, and goes with the others.
    let _ = lab.quick(&["timeline", "--svg", svg.to_str().unwrap(), &id]).ok();
    assert_eq!(drawn_width(&lab, &svg), 1200);
    let _ = lab.quick(&["gc"]).ok();
    let _ = lab
        .quick(&["timeline", &id])
        .fails(&[&id, "does not exist"])
        .exits(1);
}

/// What a `run` spares: a start of its own, and to flush a guest in which nothing is left to be.
#[test]
#[ignore = "needs a VM"]
fn of_a_run() {
    let lab = Lab::new();
    let bundle = lab.bundle().script("exit 0");
    let id = lab.id();
    let _ = lab.call(&["run", "--bundle", bundle.arg(), &id]).run().ok();
    let gone = lab.quick(&["timeline", "--format", "json", &id]).ok().json();
    let (create, delete) = (operation(&gone, "create"), operation(&gone, "delete"));
    let (began, created) = (span(create, "let it run"), span(create, "create it in the guest"));
    assert!(created.0 <= began.0 && began.1 <= created.1, "{create:#}");
    assert!(operations(&gone, "start").is_empty(), "{gone:#}");
    let flushed = delete["spans"]
        .as_array()
        .unwrap()
        .iter()
        .any(|span| span["name"] == "flush its file systems");
    assert!(!flushed, "{delete:#}");
}

#[test]
#[ignore = "needs root"]
fn of_what_never_was() {
    let lab = Lab::new();
    let id = lab.id();
    let missing = ["does not exist", "no timeline of it is kept", &id];
    let _ = lab.quick(&["timeline", &id]).fails(&missing).exits(1);
    let _ = lab.quick(&["timeline", "../x"]).fails(&["../x"]).exits(1);
    let _ = lab
        .quick(&["timeline", "--format", "xml", &id])
        .fails(&["xml", "json"])
        .exits(1);
    // One that is damaged is named.
    let kept = lab.root().join("timelines");
    std::fs::create_dir_all(&kept).unwrap();
    std::fs::write(kept.join(&id), "{").unwrap();
    let _ = lab.quick(&["timeline", &id]).fails(&["timelines", &id]).exits(1);
    let picture = lab.dir().join("no.svg");
    let _ = lab
        .quick(&["timeline", "--svg", picture.to_str().unwrap(), &id])
        .fails(&[&id]);
    assert!(!picture.exists());
}
