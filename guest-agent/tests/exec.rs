//! Programs: their output, input, end; what outlives a connection.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use hutch_agent::codec::Value;
use hutch_agent::frame::{Kind, WINDOW};
use hutch_agent::map;
use hutch_agent::scratch::Scratch;
use support::{uint, Host};

#[test]
fn exit_codes_and_signals_are_exact() {
    let mut host = Host::ready();
    for (id, script, code, signal) in [
        ("a", "exit 0", Value::from(0u64), Value::Nil),
        ("b", "exit 255", Value::from(255u64), Value::Nil),
        ("c", "kill -9 $$", Value::Nil, Value::from(9u64)),
        ("d", "kill -15 $$", Value::Nil, Value::from(15u64)),
    ] {
        let outcome = host.run(id, script);
        assert_eq!(outcome.result().get("code"), Some(&code), "{script}");
        assert_eq!(outcome.result().get("signal"), Some(&signal), "{script}");
        assert!(uint(outcome.result(), "ended_ns") >= uint(outcome.result(), "started_ns"));
    }
}

#[test]
fn output_is_exact_and_apart() {
    let mut host = Host::ready();
    let outcome = host.run("o", "printf out; printf err >&2; printf '\\000\\377'");
    assert_eq!(outcome.data, [b"out\0\xff".to_vec(), b"err".to_vec()]);
    let outcome = host.run("big", "head -c 5000000 /dev/zero; head -c 3000000 /dev/zero >&2");
    assert_eq!((outcome.data[0].len(), outcome.data[1].len()), (5_000_000, 3_000_000));
}

#[test]
fn input_arrives_and_ends() {
    let mut host = Host::ready();
    let bytes: Vec<u8> = (0..4_000_000u32).map(|n| (n * 7 % 253) as u8).collect();
    let stream = host.start("in", "cksum", map! { "stdin" => true });
    host.feed(stream, &bytes);
    let outcome = host.collect(stream);
    assert!(String::from_utf8_lossy(&outcome.data[0]).contains(" 4000000"));
    // A program that has closed its input does not hurt whoever writes to it.
    let stream = host.start("shut", "exec <&-; sleep 0.2", map! { "stdin" => true });
    host.feed(stream, &bytes);
    assert_eq!(host.collect(stream).result().get("code"), Some(&0u64.into()));
    // Without input it is /dev/null.
    assert_eq!(host.run("none", "cat").result().get("code"), Some(&0u64.into()));
}

#[test]
fn programs_that_cannot_start_say_why() {
    let scratch = Scratch::new("start");
    let at = |name: &str| scratch.path().join(name).to_str().unwrap().to_owned();
    let put = |name: &str, text: &str, mode| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::write(at(name), text).unwrap();
        std::fs::set_permissions(at(name), std::fs::Permissions::from_mode(mode)).unwrap();
    };
    put("plain", "#!/bin/sh\n", 0o644);
    put("junk", "junk", 0o755);
    put("orphan", "#!/no/such/interpreter\n", 0o755);
    let mut host = Host::ready();
    for (id, program, code) in [
        ("1", "no-such-program".to_owned(), "not_found"),
        ("2", "/no/such/program".to_owned(), "not_found"),
        ("3", at("plain"), "not_executable"),
        ("4", at("junk"), "not_executable"),
        ("5", at("orphan"), "not_found"),
        ("6", "/".to_owned(), "not_executable"),
    ] {
        let argv = vec![Value::from(program.clone())];
        let stream = host.start(id, "", map! { "argv" => argv });
        assert_eq!(host.collect(stream).end.unwrap_err(), code, "{program}");
    }
    for (field, value, code) in [
        ("cwd", "/no/such/dir", "bad_cwd"),
        ("user", "no-such-user", "no_such_user"),
        ("overflow", "spill", "bad_request"),
    ] {
        let stream = host.start("7", "true", map! { field => value });
        assert_eq!(host.collect(stream).end.unwrap_err(), code);
    }
    // None of them has taken its id.
    for id in 1..=7 {
        assert!(host.run(&id.to_string(), "true").end.is_ok());
    }
    let stream = host.start("7", "true", map! {});
    assert_eq!(host.collect(stream).end.unwrap_err(), "exists");
}

#[test]
fn a_background_child_does_not_hold_the_exec() {
    let mut host = Host::ready();
    let outcome = host.run("bg", "sleep 600 & echo $!");
    let pid: i32 = String::from_utf8_lossy(&outcome.data[0]).trim().parse().unwrap();
    assert_eq!(outcome.result().get("code"), Some(&0u64.into()));
    hutch_agent::sys::kill(pid, libc::SIGKILL).unwrap();
}

#[test]
fn a_terminal_has_its_size_and_ends_with_eot() {
    let mut host = Host::ready();
    let size = map! { "rows" => 33u64, "cols" => 99u64 };
    let script = "stty size; read line; stty size; cat";
    let stream = host.start("tty", script, map! { "tty" => size, "stdin" => true });
    assert_eq!(host.next_of(stream).kind, Kind::Reply);
    assert_eq!(host.next_of(stream).payload, b"33 99\r\n");
    let resize = map! { "resize" => map! { "rows" => 10u64, "cols" => 20u64 } };
    host.send(Kind::Control, 0, stream, &resize.encode());
    host.send(Kind::Data, 0, stream, b"go\n");
    host.send(Kind::End, 0, stream, &[]);
    let outcome = host.collect(stream);
    assert!(String::from_utf8_lossy(&outcome.data[0]).contains("10 20\r\n"));
    assert_eq!(outcome.result().get("code"), Some(&0u64.into()));
}

#[test]
fn signals_reach_the_whole_group() {
    let mut host = Host::ready();
    let stream = host.start("sig", "sleep 600 | sleep 600", map! {});
    assert_eq!(host.next_of(stream).kind, Kind::Reply);
    let signal = |number: u64| map! { "op" => "exec.signal", "id" => "sig", "signal" => number };
    assert_eq!(host.call(signal(999)), Err("bad_request".into()));
    assert_eq!(host.call(signal(15)), Ok(map! {}));
    assert_eq!(host.collect(stream).result().get("signal"), Some(&15u64.into()));
    assert_eq!(host.call(signal(15)), Err("not_found".into()));
    let exit = host.event("exec.exit");
    assert_eq!(exit.get("id"), Some(&"sig".into()));
}

#[test]
fn time_runs_out_gently_then_not() {
    let mut host = Host::ready();
    let limits = map! { "timeout_ms" => 100u64, "kill_after_ms" => 100u64 };
    let stream = host.start("soft", "trap 'exit 7' TERM; sleep 600 & wait", limits.clone());
    let outcome = host.collect(stream);
    assert_eq!(outcome.result().get("code"), Some(&7u64.into()));
    assert_eq!(outcome.result().get("timed_out"), Some(&true.into()));
    let stream = host.start("hard", "trap '' TERM; while :; do sleep 1; done", limits);
    let outcome = host.collect(stream);
    assert_eq!(outcome.result().get("signal"), Some(&9u64.into()));
    assert_eq!(outcome.result().get("timed_out"), Some(&true.into()));
}

#[test]
fn a_session_outlives_its_connection_with_what_was_not_acknowledged() {
    let mut host = Host::ready();
    let stream = host.start(
        "s",
        "printf 0123456789; read line; printf $line",
        map! {
            "stdin" => true,
        },
    );
    assert_eq!(host.next_of(stream).kind, Kind::Reply);
    assert_eq!(host.next_of(stream).payload, b"0123456789");
    host.credit(stream, 1, 4);
    host.hello();
    let attach = |from: Value| map! { "op" => "exec.attach", "id" => "s", "from" => from };
    let stream = host.stream(attach(Value::Nil));
    let reply = host.next_of(stream).map();
    assert_eq!(uint(reply.get("offsets").unwrap(), "1"), 4);
    assert_eq!(host.next_of(stream).payload, b"456789");
    // From an offset that is gone: a gap first. From one ahead: refused.
    let again = host.stream(attach(map! { "1" => 1u64, "2" => 0u64 }));
    assert_eq!(uint(host.next_of(again).map().get("offsets").unwrap(), "1"), 1);
    assert_eq!(host.next_of(again).payload, 3u64.to_le_bytes());
    assert_eq!(host.next_of(again).payload, b"456789");
    assert_eq!(host.collect(stream).end.unwrap_err(), "busy");
    let ahead = host.stream(attach(map! { "1" => 11u64 }));
    assert_eq!(host.collect(ahead).end.unwrap_err(), "bad_request");
    host.send(Kind::Data, 0, again, b"end\n");
    let outcome = host.collect(again);
    assert_eq!(outcome.data[0], b"end");
    // Ended, and still there until released.
    let after = host.stream(attach(map! { "1" => 10u64 }));
    let outcome = host.collect(after);
    assert_eq!(outcome.data[0], b"end");
    assert_eq!(outcome.reply.unwrap().get("running"), Some(&false.into()));
    let release = map! { "op" => "exec.release", "id" => "s" };
    assert_eq!(host.call(release.clone()), Ok(map! {}));
    assert_eq!(host.call(release), Err("not_found".into()));
}

#[test]
fn a_full_ring_blocks_or_drops_as_told() {
    let scratch = Scratch::new("full");
    let done = scratch.path().join("done");
    let script = format!("head -c 8000000 /dev/zero; : > {}", done.display());
    let mut host = Host::ready();
    let detached = |mode: &str| map! { "attach" => false, "detached" => true, "overflow" => mode };
    let stream = host.start("drop", &script, detached("drop"));
    host.collect(stream);
    host.event("exec.exit");
    assert!(done.exists());
    std::fs::remove_file(&done).unwrap();
    let from = map! { "1" => 0u64, "2" => 0u64 };
    let attach = |id: &str| map! { "op" => "exec.attach", "id" => id, "from" => from.clone() };
    let stream = host.stream(attach("drop"));
    let outcome = host.collect(stream);
    assert_eq!(outcome.gap + outcome.data[0].len() as u64, 8_000_000);
    assert!(outcome.gap > 0 && outcome.data[0].len() <= WINDOW);
    let stream = host.start("block", &script, detached("block"));
    host.collect(stream);
    let stream = host.stream(attach("block"));
    let outcome = host.collect(stream);
    assert_eq!((outcome.gap, outcome.data[0].len()), (0, 8_000_000));
    assert!(done.exists());
}

#[test]
fn closing_a_stream_detaches() {
    let mut host = Host::ready();
    let stream = host.start("c", "sleep 0.2; exit 4", map! {});
    assert_eq!(host.next_of(stream).kind, Kind::Reply);
    host.send(Kind::Close, 0, stream, &[]);
    let exit = host.event("exec.exit");
    assert_eq!(exit.get("result").unwrap().get("code"), Some(&4u64.into()));
    let list = host.call(map! { "op" => "exec.list" }).unwrap();
    let Some(Value::Array(execs)) = list.get("execs") else { panic!("{list:?}") };
    assert_eq!(execs[0].get("running"), Some(&false.into()));
}

#[test]
fn a_host_that_takes_nothing_is_not_sent_a_gap_for_every_drop() {
    let mut host = Host::ready();
    let stream = host.start("d", "head -c 40000000 /dev/zero", map! { "overflow" => "drop" });
    host.event("exec.exit");
    // Asked for last, so all that came before it is here.
    host.call(map! { "op" => "ping" }).unwrap();
    let frames = host.waiting_for(stream);
    let gaps = frames.iter().filter(|frame| frame.kind == Kind::Gap).count();
    assert!(gaps <= 2, "{gaps} gaps");
    host.credit(stream, 1, WINDOW);
    let outcome = host.collect(stream);
    let got = outcome.data[0].len() as u64;
    assert_eq!(got + outcome.gap, 40_000_000);
}

#[test]
fn what_ignores_its_time_limit_is_killed_though_its_session_is_forgotten() {
    let mut host = Host::ready();
    let limits = map! { "timeout_ms" => 300u64, "kill_after_ms" => 700u64 };
    let script = "sh -c \"trap '' TERM; echo \\$\\$; exec sleep 60\" & wait";
    let stream = host.start("k", script, limits);
    let outcome = host.collect(stream);
    assert_eq!(outcome.result().get("timed_out"), Some(&true.into()));
    let pid = String::from_utf8(outcome.data[0].clone()).unwrap().trim().to_owned();
    let alive = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.contains("(sleep)") && !stat.contains(") Z ")
    };
    assert!(alive(), "the child should still be ignoring SIGTERM");
    host.call(map! { "op" => "exec.release", "id" => "k" }).unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while alive() {
        assert!(std::time::Instant::now() < deadline, "{pid} lives on");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}
