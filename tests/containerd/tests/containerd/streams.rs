//! Standard streams of a shim's processes, the test in containerd's place.

use bulkhead_containerd::{Bundle, Engine, Place, Shim, exec};
use bulkhead_e2e::{VERB, until};
use containerd_shim_protos::api::{CloseIORequest, Empty};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;

/// FIFOs whose readers go away and come back, half-close, files, a logging program, in one container.
#[test]
#[ignore = "needs a VM"]
fn of_every_kind() {
    let engine = Engine::Bulkhead;
    let place = Place::new();
    let id = format!("{}-0", place.token());
    let bundle = Bundle::make(&place, &id, "while read word; do echo got $word; done; echo end");
    let shim = Shim::start(&place, engine, &bundle);
    let (stdin, stdout, stderr) = (bundle.fifo("in"), bundle.fifo("out"), bundle.fifo("err"));
    // As clients do: they listen before there is anything to hear.
    let listen = |path: &str| {
        OpenOptions::new()
            .read(true)
            .custom_flags(nix::libc::O_NONBLOCK)
            .open(path)
            .unwrap()
    };
    let listening = [listen(&stdout), listen(&stderr)];
    shim.create_as(&bundle, |request| {
        request.stdin.clone_from(&stdin);
        request.stdout.clone_from(&stdout);
        request.stderr.clone_from(&stderr);
    })
    .unwrap();
    drop(listening);
    shim.begin(&id, "").unwrap();
    let mut feed = OpenOptions::new().write(true).open(&stdin).unwrap();
    for word in ["one", "two"] {
        // A client comes, reads one line and goes.
        let mut reader = File::open(&stdout).unwrap();
        feed.write_all(format!("{word}\n").as_bytes()).unwrap();
        let mut line = vec![0; 8];
        reader.read_exact(&mut line).unwrap();
        assert_eq!(String::from_utf8(line).unwrap(), format!("got {word}\n"));
    }

    // To a file.
    let log = place.dir().join("file.log");
    let mut request = exec(&id, "file", &["sh", "-c", "echo to-the-file"]);
    request.stdout = format!("file://{}", log.display());
    let _: Empty = shim.call("Exec", &request).unwrap();
    shim.begin(&id, "file").unwrap();
    assert_eq!(shim.wait(&id, "file").unwrap().exit_status, 0);
    shim.delete(&id, "file").unwrap();
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "to-the-file\n");

    // To a logging program, which gets both outputs and the names.
    let program = place.dir().join("logger");
    let kept = place.dir().join("kept");
    let script = format!(
        "#!/bin/sh\nexec 5>&-\nexec >{}\necho $CONTAINER_ID $CONTAINER_NAMESPACE $1 $2\n/bin/cat <&3\n/bin/cat <&4\necho over\n",
        kept.display()
    );
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o755)
        .open(&program)
        .unwrap();
    file.write_all(script.as_bytes()).unwrap();
    drop(file);
    let mut request = exec(&id, "logged", &["sh", "-c", "echo out; echo err >&2"]);
    request.stdout = format!("binary://{}?key=value", program.display());
    request.stderr.clone_from(&request.stdout);
    let _: Empty = shim.call("Exec", &request).unwrap();
    shim.begin(&id, "logged").unwrap();
    assert_eq!(shim.wait(&id, "logged").unwrap().exit_status, 0);
    shim.delete(&id, "logged").unwrap();
    let expected = format!("logged {} key value\nout\nerr\nover\n", place.token());
    until("the logging program has ended", VERB, || {
        std::fs::read_to_string(&kept)
            .unwrap_or_default()
            .ends_with("over\n")
    });
    assert_eq!(std::fs::read_to_string(&kept).unwrap(), expected);

    // Half-close: the client's end and CloseIO.
    let mut reader = File::open(&stdout).unwrap();
    drop(feed);
    let request = CloseIORequest {
        id: id.clone(),
        stdin: true,
        ..CloseIORequest::default()
    };
    let _: Empty = shim.call("CloseIO", &request).unwrap();
    let mut rest = String::new();
    reader.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "end\n");
    assert_eq!(shim.wait(&id, "").unwrap().exit_status, 0);
    shim.delete(&id, "").unwrap();
    shim.shutdown(&id);
}
