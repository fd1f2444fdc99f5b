//! Mounts, roots and cgroups against the real kernel.
#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]

use bulkhead_host::cgroup::{self, Cgroup, CgroupError, Hierarchy, RESOURCES};
use bulkhead_host::mount::{self, Attributes, CountError, InRoot, Propagation, TargetKind, Tree};
use bulkhead_host::process::{Exit, Namespace, Spawn};
use nix::fcntl::OFlag;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

const LONG: Duration = Duration::from_secs(60);

/// A root with an absolute link, a relative one and one that tries to climb out, and a secret beside it.
fn rootfs() -> (tempfile::TempDir, InRoot) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("secret"), "host").unwrap();
    let root = dir.path().join("root");
    std::fs::create_dir_all(root.join("etc")).unwrap();
    std::fs::write(root.join("etc/passwd"), "container").unwrap();
    symlink("/etc/passwd", root.join("absolute")).unwrap();
    symlink("../../../../secret", root.join("climbing")).unwrap();
    symlink("/new/place", root.join("dangling")).unwrap();
    symlink("loop-b", root.join("loop-a")).unwrap();
    symlink("loop-a", root.join("loop-b")).unwrap();
    let in_root = InRoot::open_root(&root).unwrap();
    (dir, in_root)
}

fn text(root: &InRoot, path: &str) -> std::io::Result<String> {
    let mut text = String::new();
    File::from(root.open(Path::new(path), OFlag::O_RDONLY)?).read_to_string(&mut text)?;
    Ok(text)
}

#[test]
fn paths_stay_inside_the_root() {
    let (_dir, root) = rootfs();
    assert_eq!(text(&root, "/absolute").unwrap(), "container");
    assert_eq!(text(&root, "../../etc/passwd").unwrap(), "container");
    assert!(
        text(&root, "/climbing").is_err(),
        "the secret is not below the root"
    );
    assert!(text(&root, "/loop-a").is_err());
    assert!(root.open(Path::new("/"), OFlag::O_DIRECTORY).is_ok());
}

#[test]
fn magic_links_are_not_followed() {
    let root = InRoot::open_root(Path::new("/proc")).unwrap();
    assert!(root.locate(Path::new("/self/root/etc")).is_err());
}

#[test]
fn missing_targets_are_created_inside_only() {
    let (dir, root) = rootfs();
    let base = dir.path().join("root");
    root.ensure(Path::new("/a/b/c"), TargetKind::Directory).unwrap();
    assert!(base.join("a/b/c").is_dir());
    root.ensure(Path::new("/a/file"), TargetKind::File).unwrap();
    let mode = std::fs::metadata(base.join("a/file"))
        .unwrap()
        .permissions()
        .mode()
        & 0o777;
    assert_eq!(mode & 0o700, 0o700);
    root.ensure(Path::new("/a/file"), TargetKind::File).unwrap();
    root.ensure(Path::new("../../x"), TargetKind::File).unwrap();
    assert!(base.join("x").is_file() && !dir.path().join("x").exists());
}

#[test]
fn links_to_nothing_are_followed_inside_only() {
    let (dir, root) = rootfs();
    let base = dir.path().join("root");
    root.ensure(Path::new("/dangling/deep"), TargetKind::Directory)
        .unwrap();
    assert!(base.join("new/place/deep").is_dir());
    root.ensure(Path::new("/climbing"), TargetKind::File).unwrap();
    assert!(base.join("secret").is_file());
    assert_eq!(
        std::fs::read_to_string(dir.path().join("secret")).unwrap(),
        "host"
    );
    assert!(root.ensure(Path::new("/loop-a/x"), TargetKind::File).is_err());
}

#[test]
fn m_10_files_are_counted_up_to_a_limit() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
    for name in ["1", "a/2", "a/b/3"] {
        std::fs::write(dir.path().join(name), "").unwrap();
    }
    symlink("/", dir.path().join("a/link")).unwrap();
    let count = |limit| mount::count_files(dir.path(), limit);
    assert_eq!(count(4).unwrap(), 4);
    assert!(matches!(count(3), Err(CountError::TooMany { limit: 3, .. })));
    assert_eq!(mount::count_files(&dir.path().join("1"), 8).unwrap(), 1);
    assert!(matches!(
        mount::count_files(Path::new("/no/such"), 8),
        Err(CountError::Stat { .. })
    ));
}

/// Runs a test of this file again, by name, in a mount namespace of its own, so that no mount can leak.
/// `Some` with a scratch directory inside of it; `None` in the outer run, which has nothing more to do.
fn in_own_namespace(name: &str) -> Option<PathBuf> {
    if let Some(scratch) = std::env::var_os("SCRATCH") {
        mount::propagate(Path::new("/"), Propagation::Private, true).unwrap();
        return Some(scratch.into());
    }
    let scratch = tempfile::tempdir().unwrap();
    let started = Spawn::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--ignored", "--nocapture"])
        .env("SCRATCH", scratch.path().canonicalize().unwrap())
        .fd(std::io::stdout().as_fd().try_clone_to_owned().unwrap(), 1)
        .fd(std::io::stderr().as_fd().try_clone_to_owned().unwrap(), 2)
        .unshare(Namespace::Mount)
        .spawn()
        .unwrap();
    assert_eq!(
        started.child.wait(LONG).unwrap(),
        Some(Exit::Code(0)),
        "in its namespace"
    );
    None
}

fn own(path: &Path) -> mount::MountInfo {
    mount::read(None)
        .unwrap()
        .into_iter()
        .rfind(|m| m.target == path)
        .unwrap()
}

#[test]
#[ignore = "needs root"]
fn binds_are_attached_adjusted_and_taken_away() {
    let Some(base) = in_own_namespace("binds_are_attached_adjusted_and_taken_away") else {
        return;
    };
    let (source, target) = (base.join("source"), base.join("target"));
    std::fs::create_dir(&source).unwrap();
    std::fs::create_dir(&target).unwrap();
    std::fs::write(source.join("f"), "x").unwrap();
    let tree = Tree::bind(&source, true).unwrap();
    let read_only = Attributes {
        read_only: true,
        ..Attributes::default()
    };
    tree.set(read_only, true).unwrap();
    tree.attach_at(&target).unwrap();
    assert_eq!(std::fs::read_to_string(target.join("f")).unwrap(), "x");
    assert_eq!(
        std::fs::write(target.join("f"), "y").unwrap_err().raw_os_error(),
        Some(libc::EROFS)
    );
    assert!(mount::has_option(&own(&target).options, "ro") && !own(&target).is_shared());
    mount::propagate(&target, Propagation::Shared, false).unwrap();
    assert!(own(&target).is_shared());

    let busy = File::open(target.join("f")).unwrap();
    assert!(mount::unmount(&target).unwrap(), "busy: detached");
    drop(busy);
    assert!(!mount::unmount(&target).unwrap(), "nothing there: success");
    assert!(!mount::unmount(Path::new("/no/such")).unwrap());

    let tmpfs = Tree::filesystem("tmpfs", &[("size", Some("1m"))], Attributes::default()).unwrap();
    tmpfs.attach_at(&target).unwrap();
    assert_eq!(own(&target).fs_type, "tmpfs");
    mount::restrict(&target, read_only, false).unwrap();
    assert!(std::fs::write(target.join("f"), "y").is_err());
    mount::unmount(&target).unwrap();
    let error = Tree::filesystem("tmpfs", &[("no-such", None)], Attributes::default()).unwrap_err();
    assert!(error.to_string().contains("no-such"), "{error}");
}

#[test]
#[ignore = "needs root"]
fn a_new_root_leaves_nothing_of_the_old_one() {
    let Some(root) = in_own_namespace("a_new_root_leaves_nothing_of_the_old_one") else {
        return;
    };
    std::fs::create_dir(root.join("proc")).unwrap();
    Tree::bind(&root, true).unwrap().attach_at(&root).unwrap();
    let proc = Tree::filesystem("proc", &[], Attributes::default()).unwrap();
    proc.attach_at(&root.join("proc")).unwrap();
    mount::move_to_root(&root).unwrap();
    let names: Vec<PathBuf> = std::fs::read_dir("/")
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    assert_eq!(names, [Path::new("/proc")]);
    let targets: Vec<PathBuf> = mount::read(None).unwrap().into_iter().map(|m| m.target).collect();
    assert_eq!(targets, [Path::new("/"), Path::new("/proc")]);
    assert_eq!(std::env::current_dir().unwrap(), Path::new("/"));
}

#[test]
#[ignore = "needs root"]
fn k_03_a_cgroup_is_made_joined_limited_and_removed_on_this_host() {
    let hierarchy = Hierarchy::detect().unwrap();
    let path = format!("/bulkhead-host-test-{}/x", std::process::id());
    let group = Cgroup::plan(&hierarchy, &path, None, &RESOURCES).unwrap();
    let created = group.create().unwrap();
    assert!(!created.directories.is_empty());
    group.set_memory_limit(Some(256 << 20)).unwrap();
    let mut spawn = Spawn::new("/bin/sleep").arg("600");
    for procs in group.procs() {
        spawn = spawn.cgroup(procs);
    }
    let started = spawn.spawn().unwrap();
    assert_eq!(started.cgroup_refusals.len(), 0, "{:?}", started.cgroup_refusals);
    let groups = std::fs::read_to_string(format!("/proc/{}/cgroup", started.child.pid())).unwrap();
    assert!(groups.contains(&path), "{groups}");
    let other = Spawn::new("/bin/sleep").arg("600").spawn().unwrap().child;
    assert_eq!(cgroup::join(&group.procs(), other.pid()).len(), 0);
    let groups = std::fs::read_to_string(format!("/proc/{}/cgroup", other.pid())).unwrap();
    assert!(groups.contains(&path), "{groups}");
    other.kill_and_wait(LONG).unwrap();
    match group.remove(Duration::from_millis(20)) {
        Err(CgroupError::Busy { pids, .. }) => assert_eq!(pids, [started.child.pid()]),
        other => panic!("{other:?}"),
    }
    started.child.kill_and_wait(LONG).unwrap();
    group.remove(LONG).unwrap();
    group.remove(LONG).unwrap();
    for directory in created.directories.iter().rev() {
        assert!(
            cgroup::remove_if_empty(directory).unwrap(),
            "{}",
            directory.display()
        );
    }
}
