use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;

use super::testing::fifo;
use super::*;

fn refusal<T>(result: io::Result<T>) -> FileRefusal {
    FileRefusal::of(&result.err().unwrap()).unwrap()
}

#[test]
fn what_is_no_regular_file_is_refused_at_once_however_it_is_reached() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fifo(&at("fifo"));
    symlink(at("fifo"), at("link-to-fifo")).unwrap();
    let _socket = UnixListener::bind(at("socket")).unwrap();
    let found = |path: &Path| match refusal(open(path)) {
        FileRefusal::NotRegular { found } => found,
        other => panic!("{other}"),
    };
    // A FIFO without a writer: opening it the ordinary way would wait for ever.
    assert_eq!(found(&at("fifo")), "a FIFO");
    assert_eq!(found(&at("link-to-fifo")), "a FIFO");
    assert_eq!(found(&at("socket")), "a socket");
    assert_eq!(found(dir.path()), "a folder");
    assert_eq!(found(Path::new("/dev/zero")), "a device");
    let for_writing = open_with(OpenOptions::new().write(true).create(true), &at("fifo"), Links::Refuse);
    assert_eq!(refusal(for_writing), FileRefusal::NotRegular { found: "a FIFO" });
}

#[test]
fn a_link_to_a_file_is_followed_where_links_are_meant_and_refused_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let (blob, link) = (dir.path().join("blob"), dir.path().join("link"));
    fs::write(&blob, "text").unwrap();
    symlink(&blob, &link).unwrap();
    assert_eq!(read(&link, 4).unwrap(), b"text");
    let own = |path: &Path| open_with(OpenOptions::new().read(true), path, Links::Refuse);
    assert_eq!(refusal(own(&link)), FileRefusal::NotRegular { found: "a link" });
    assert_eq!(read_open(own(&blob).unwrap(), 4).unwrap(), b"text");
}

#[test]
fn no_more_is_read_than_allowed_even_from_what_has_no_size() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    fs::write(&path, "12345").unwrap();
    assert_eq!(read(&path, 5).unwrap(), b"12345");
    assert_eq!(refusal(read(&path, 4)), FileRefusal::TooLarge { bytes: 5, max: 4 });
    let error = read(&path, 4).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
    assert_eq!(error.to_string(), "it has 5 bytes or more, the limit is 4");
    // procfs says 0 bytes and has more, as a file does that grows while it is read.
    #[cfg(target_os = "linux")]
    assert!(matches!(refusal(read(Path::new("/proc/self/maps"), 10)), FileRefusal::TooLarge { bytes: 11, max: 10 }));
}

#[test]
fn a_pointer_of_git_lfs_is_not_taken_for_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("chat_template.jinja");
    fs::write(&path, "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n").unwrap();
    assert_eq!(refusal(read(&path, 1000)), FileRefusal::LfsPointer);
    assert!(read_if_there(&path, 1000).unwrap_err().to_string().contains("git lfs pull"));
    fs::write(&path, "version https://example.com/").unwrap();
    assert!(read(&path, 1000).is_ok());
}

#[test]
fn an_absent_file_is_absent_and_nothing_else_is() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(read_if_there(&dir.path().join("none"), 10).unwrap(), None);
    assert_eq!(refusal(read_if_there(dir.path(), 10)), FileRefusal::NotRegular { found: "a folder" });
    let behind_a_file = dir.path().join("file").join("x");
    fs::write(dir.path().join("file"), "").unwrap();
    assert!(read_if_there(&behind_a_file, 10).is_err());
}

#[test]
fn options_reach_the_system() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("LOCK");
    drop(open_with(OpenOptions::new().create(true).truncate(false).write(true), &path, Links::Refuse).unwrap());
    assert_eq!(fs::metadata(&path).unwrap().len(), 0);
    assert!(open_with(OpenOptions::new().create_new(true).write(true), &path, Links::Refuse).is_err());
}
