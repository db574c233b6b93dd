//! Files, trees and tunnels.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::os::unix::fs::{symlink, MetadataExt, PermissionsExt};
use std::path::Path;
use std::thread;

use hutch_agent::codec::Value;
use hutch_agent::frame::Kind;
use hutch_agent::map;
use hutch_agent::scratch::Scratch;
use hutch_agent::tar::header::{padding, Entry, Kind as TarKind, BLOCK};
use support::{uint, Host};

fn text(path: &Path) -> Value {
    path.to_str().unwrap().into()
}

fn write(host: &mut Host, path: &Path, bytes: &[u8], fields: Value) -> Result<Value, String> {
    let Value::Map(mut request) = fields else { panic!("no map") };
    request.push(("op".into(), "fs.write".into()));
    request.push(("path".into(), text(path)));
    let stream = host.stream(Value::Map(request));
    host.feed(stream, bytes);
    host.collect(stream).end
}

#[test]
fn a_file_comes_back_whole_and_in_part() {
    let scratch = Scratch::new("files");
    let path = scratch.path().join("sub/file");
    let bytes: Vec<u8> = (0..3_000_000u32).map(|n| (n % 249) as u8).collect();
    let mut host = Host::ready();
    assert_eq!(write(&mut host, &path, &bytes, map! {}), Err("not_found".into()));
    let fields = map! { "parents" => true, "mode" => 0o640u32 };
    assert_eq!(uint(&write(&mut host, &path, &bytes, fields).unwrap(), "bytes"), 3_000_000);
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o640);
    let read = |from: u64, length: Value| {
        map! { "op" => "fs.read", "path" => text(&path), "offset" => from, "length" => length }
    };
    let stream = host.stream(read(0, Value::Nil));
    assert!(host.collect(stream).data[0] == bytes);
    let stream = host.stream(read(1_000_000, 70_000u64.into()));
    assert!(host.collect(stream).data[0] == bytes[1_000_000..1_070_000]);
    let stream = host.stream(map! { "op" => "fs.read", "path" => text(scratch.path()) });
    assert_eq!(host.collect(stream).end, Err("is_dir".into()));
}

#[test]
fn writing_keeps_what_it_should() {
    let scratch = Scratch::new("keep");
    let (path, link) = (scratch.path().join("file"), scratch.path().join("link"));
    fs::write(&path, "old").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o4711)).unwrap();
    symlink("file", &link).unwrap();
    let mut host = Host::ready();
    write(&mut host, &link, b"new", map! {}).unwrap();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(fs::read_to_string(&path).unwrap(), "new");
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o4711);
    write(&mut host, &path, b"er", map! { "append" => true }).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "newer");
    let exclusive = write(&mut host, &path, b"", map! { "exclusive" => true });
    assert_eq!(exclusive, Err("exists".into()));
    // A transfer that breaks leaves nothing behind.
    let stream = host.stream(map! { "op" => "fs.write", "path" => text(&path) });
    host.send(Kind::Data, 0, stream, b"half");
    host.hello();
    while fs::read_dir(scratch.path()).unwrap().count() > 2 {
        thread::yield_now();
    }
    assert_eq!(fs::read_to_string(&path).unwrap(), "newer");
}

#[test]
fn a_directory_is_listed_in_order() {
    let scratch = Scratch::new("list");
    for number in (0..3000).rev() {
        fs::write(scratch.path().join(format!("file-{number:05}")), "").unwrap();
    }
    let mut host = Host::ready();
    let stream = host.stream(map! { "op" => "fs.list", "path" => text(scratch.path()) });
    let outcome = host.collect(stream);
    assert_eq!(uint(outcome.result(), "entries"), 3000);
    // Entries are concatenated; as the elements of one array they can be read at once.
    let array = [&[0xdc, 0x0b, 0xb8][..], &outcome.data[0]].concat();
    let Value::Array(entries) = Value::decode(&array).unwrap() else { panic!("no array") };
    let names: Vec<_> = entries.iter().map(|entry| entry.get("name").cloned()).collect();
    assert_eq!(names[0], Some(Value::from(&b"file-00000"[..])));
    assert_eq!(names[2999], Some(Value::from(&b"file-02999"[..])));
}

#[test]
fn a_tree_travels_as_tar() {
    let scratch = Scratch::new("tree");
    let from = scratch.path().join("from");
    let long = "n".repeat(120);
    fs::create_dir_all(from.join("sub").join(&long)).unwrap();
    fs::write(from.join("sub/file"), vec![5; 700_000]).unwrap();
    fs::set_permissions(from.join("sub/file"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::hard_link(from.join("sub/file"), from.join("sub").join(&long).join("twin")).unwrap();
    symlink("/nowhere", from.join("link")).unwrap();
    let mut host = Host::ready();
    let request = map! { "op" => "tar.read", "path" => text(&from), "name" => "top" };
    let stream = host.stream(request);
    let packed = host.collect(stream);
    assert_eq!(uint(packed.result(), "bytes"), packed.data[0].len() as u64);
    let to = scratch.path().join("to");
    let request = map! { "op" => "tar.write", "path" => text(&to), "parents" => true };
    let stream = host.stream(request);
    host.feed(stream, &packed.data[0]);
    let unpacked = host.collect(stream);
    assert_eq!(uint(unpacked.result(), "entries"), uint(packed.result(), "entries"));
    let top = to.join("top");
    let file = fs::metadata(top.join("sub/file")).unwrap();
    assert_eq!((file.mode() & 0o7777, file.len(), file.nlink()), (0o4751, 700_000, 2));
    assert_eq!(file.mtime(), fs::metadata(from.join("sub/file")).unwrap().mtime());
    assert_eq!(fs::read_link(top.join("link")).unwrap(), Path::new("/nowhere"));
    assert_eq!(fs::read(top.join("sub").join(&long).join("twin")).unwrap().len(), 700_000);
}

fn archive(entries: &[(&str, TarKind, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, kind, content) in entries {
        let is_file = *kind == TarKind::File;
        let entry = Entry {
            name: name.as_bytes().to_vec(),
            kind: *kind,
            mode: 0o755,
            uid: 0,
            gid: 0,
            size: if is_file { content.len() as u64 } else { 0 },
            mtime: 1_000_000_000,
            link: if is_file { vec![] } else { content.as_bytes().to_vec() },
            major: 0,
            minor: 0,
            xattrs: vec![],
        };
        bytes.extend_from_slice(&entry.encode());
        if is_file {
            bytes.extend_from_slice(content.as_bytes());
            bytes.resize(bytes.len() + padding(content.len() as u64), 0);
        }
    }
    bytes.resize(bytes.len() + 2 * BLOCK, 0);
    bytes
}

#[test]
fn an_archive_cannot_reach_out_of_its_directory() {
    use TarKind::{File, HardLink, Symlink};
    let scratch = Scratch::new("escape");
    let victim = scratch.path().join("victim");
    fs::write(&victim, "safe").unwrap();
    let absolute = victim.to_str().unwrap();
    let attacks: Vec<Vec<(&str, TarKind, &str)>> = vec![
        vec![("../victim", File, "evil")],
        vec![("a/../../victim", File, "evil")],
        vec![(absolute, File, "evil")],
        vec![("l", Symlink, ".."), ("l/victim", File, "evil")],
        vec![("l", Symlink, absolute), ("l", File, "evil")],
        vec![("h", HardLink, "../victim"), ("h", File, "evil")],
        vec![("l", Symlink, absolute), ("h", HardLink, "l"), ("h", File, "evil")],
        vec![("l", Symlink, "../../../../../../../../"), (&absolute[1..], File, "evil")],
    ];
    let mut host = Host::ready();
    for (number, attack) in attacks.iter().enumerate() {
        let jail = scratch.path().join(format!("jail-{number}"));
        let request = map! { "op" => "tar.write", "path" => text(&jail), "parents" => true };
        let stream = host.stream(request);
        host.feed(stream, &archive(attack));
        let _ = host.collect(stream);
        assert_eq!(fs::read_to_string(&victim).unwrap(), "safe", "{attack:?}");
        assert_eq!(fs::metadata(&victim).unwrap().nlink(), 1, "{attack:?}");
    }
    let others = fs::read_dir(scratch.path()).unwrap().count();
    assert_eq!(others, 1 + attacks.len());
}

#[test]
fn broken_archives_are_refused() {
    let scratch = Scratch::new("broken");
    let whole = archive(&[("file", TarKind::File, "content")]);
    let mut host = Host::ready();
    let mut garbage = whole.clone();
    garbage[0] ^= 0xff;
    for bytes in [&whole[..BLOCK + 3], &whole[..100], &garbage, &[1; 5000]] {
        let stream = host.stream(map! { "op" => "tar.write", "path" => text(scratch.path()) });
        host.feed(stream, bytes);
        assert_eq!(host.collect(stream).end, Err("bad_request".into()));
    }
}

#[test]
fn a_tunnel_carries_both_ways_and_half_closes() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let peer = thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        let mut bytes = Vec::new();
        socket.read_to_end(&mut bytes).unwrap();
        socket.write_all(&bytes).unwrap();
        socket.write_all(b"bye").unwrap();
        socket.shutdown(Shutdown::Write).unwrap();
    });
    let mut host = Host::ready();
    let stream = host.stream(map! { "op" => "tunnel", "port" => u64::from(port) });
    let bytes = vec![9; 2_500_000];
    host.feed(stream, &bytes);
    let outcome = host.collect(stream);
    peer.join().unwrap();
    assert_eq!(outcome.data[0].len(), bytes.len() + 3);
    assert_eq!(outcome.result(), &map! {});
    let refused = host.stream(map! { "op" => "tunnel", "port" => u64::from(port) });
    assert_eq!(host.collect(refused).end, Err("refused".into()));
}
