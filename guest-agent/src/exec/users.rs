//! Users and groups as the image's own /etc/passwd and /etc/group name them; never NSS.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::exec::child::Ids;
use crate::failure::{Code, Failure};

/// Larger files than this are not read: the image is not trusted.
const MAX_FILE: u64 = 4 << 20;

/// Who a program runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The ids.
    pub ids: Ids,
    /// The name, empty for a number that has none.
    pub name: String,
    /// The home directory, `/` where none is known.
    pub home: String,
}

struct Passwd {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

struct Group {
    name: String,
    gid: u32,
    members: Vec<String>,
}

/// Finds `""` (root), `name`, `uid`, `name:group` or `uid:gid` below `root`.
///
/// # Errors
/// `no_such_user` for a name that the image does not have.
pub fn find(root: &Path, user: &str) -> Result<User, Failure> {
    let passwd = parse(&root.join("etc/passwd"), parse_passwd);
    let groups = parse(&root.join("etc/group"), parse_group);
    let (who, group) = match user.split_once(':') {
        Some((who, group)) => (who, Some(group)),
        None => (user, None),
    };
    let who = if who.is_empty() { "0" } else { who };
    let entry = passwd
        .iter()
        .find(|entry| entry.name == who)
        .or_else(|| passwd.iter().find(|entry| Some(entry.uid) == number(who)));
    let uid = match (entry, number(who)) {
        (Some(entry), _) => entry.uid,
        (None, Some(uid)) => uid,
        (None, None) => {
            return Err(Failure::new(Code::NoSuchUser, format!("the image has no user {who}")))
        }
    };
    let gid = match group.filter(|group| !group.is_empty()) {
        None => entry.map_or(0, |entry| entry.gid),
        Some(group) => groups
            .iter()
            .find(|entry| entry.name == group)
            .map(|entry| entry.gid)
            .or_else(|| number(group))
            .ok_or_else(|| {
                Failure::new(Code::NoSuchUser, format!("the image has no group {group}"))
            })?,
    };
    let name = entry.map_or(String::new(), |entry| entry.name.clone());
    // As container tools do: naming a group leaves the user's other groups out.
    let mut supplementary = Vec::new();
    if group.is_none_or(str::is_empty) {
        let is_member = |group: &&Group| group.members.contains(&name);
        supplementary.extend(groups.iter().filter(is_member).map(|group| group.gid));
    }
    if !supplementary.contains(&gid) {
        supplementary.insert(0, gid);
    }
    supplementary.truncate(65_536);
    let home = match entry {
        Some(entry) if !entry.home.is_empty() => entry.home.clone(),
        None if uid == 0 => "/root".into(),
        _ => "/".into(),
    };
    let name = if name.is_empty() && uid == 0 { "root".into() } else { name };
    Ok(User { ids: Ids { uid, gid, groups: supplementary }, name, home })
}

/// The name of each uid, for lists of processes.
pub fn names(root: &Path) -> Vec<(u32, String)> {
    let passwd = parse(&root.join("etc/passwd"), parse_passwd);
    passwd.into_iter().map(|entry| (entry.uid, entry.name)).collect()
}

fn number(text: &str) -> Option<u32> {
    // u32::MAX is "no change" to the kernel.
    text.parse().ok().filter(|id| *id != u32::MAX)
}

/// A file that is missing, too large or no regular file has no lines.
fn parse<T>(path: &Path, line: impl Fn(&[&str]) -> Option<T>) -> Vec<T> {
    String::from_utf8_lossy(&read(path).unwrap_or_default())
        .lines()
        .filter(|text| !text.starts_with('#'))
        .filter_map(|text| line(&text.trim_end().split(':').collect::<Vec<_>>()))
        .collect()
}

/// Without waiting for the writer of a fifo, and without trusting that the file stays what it is.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() || meta.len() > MAX_FILE {
        return Ok(Vec::new());
    }
    let mut text = Vec::with_capacity(meta.len() as usize + 1);
    file.by_ref().take(MAX_FILE).read_to_end(&mut text)?;
    Ok(text)
}

fn parse_passwd(fields: &[&str]) -> Option<Passwd> {
    match fields {
        [name, _, uid, gid, _, home, ..] => Some(Passwd {
            name: (*name).into(),
            uid: number(uid)?,
            gid: number(gid)?,
            home: (*home).into(),
        }),
        _ => None,
    }
}

fn parse_group(fields: &[&str]) -> Option<Group> {
    match fields {
        [name, _, gid, members, ..] => Some(Group {
            name: (*name).into(),
            gid: number(gid)?,
            members: members.split(',').filter(|m| !m.is_empty()).map(Into::into).collect(),
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn image() -> crate::scratch::Scratch {
        let scratch = crate::scratch::Scratch::new("users");
        fs::create_dir_all(scratch.path().join("etc")).unwrap();
        let passwd =
            "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:App:/home/app:/bin/sh\n# x\nbad\n";
        fs::write(scratch.path().join("etc/passwd"), passwd).unwrap();
        let groups = "root:x:0:\napp:x:1001:\nwheel:x:10:root,app\nvideo:x:44:app\n";
        fs::write(scratch.path().join("etc/group"), groups).unwrap();
        scratch
    }

    fn ids(user: &str) -> (u32, u32, Vec<u32>) {
        let user = find(image().path(), user).unwrap();
        (user.ids.uid, user.ids.gid, user.ids.groups)
    }

    #[test]
    fn all_forms_are_understood() {
        assert_eq!(ids(""), (0, 0, vec![0, 10]));
        assert_eq!(ids("app"), (1000, 1001, vec![1001, 10, 44]));
        assert_eq!(ids("1000"), (1000, 1001, vec![1001, 10, 44]));
        assert_eq!(ids("app:wheel"), (1000, 10, vec![10]));
        assert_eq!(ids("7:8"), (7, 8, vec![8]));
        assert_eq!(ids("77"), (77, 0, vec![0]));
        assert_eq!(find(image().path(), "app").unwrap().home, "/home/app");
        assert_eq!(find(image().path(), "77").unwrap().home, "/");
    }

    #[test]
    fn unknown_names_are_refused() {
        for user in ["nobody", "app:nogroup", "-1", "4294967295"] {
            assert_eq!(find(image().path(), user).unwrap_err().code, Code::NoSuchUser);
        }
        let empty = crate::scratch::Scratch::new("empty");
        assert_eq!(find(empty.path(), "").unwrap().home, "/root");
    }
}
