//! Which life of its memory this machine leads: a number that each clone, fork and restore raises.
//!
//! The host says what it counts; a machine in which programs have run must never keep its number,
//! whatever the host counts, since those programs compare it with what they have read before.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::etc;

/// Where programs read it.
const DIRECTORY: &str = "run/hutch";
const NAME: &str = "generation";

/// The generation of this machine.
#[derive(Default)]
pub struct Generation {
    state: Mutex<State>,
    telling: Mutex<()>,
}

#[derive(Default)]
struct State {
    number: u64,
    /// The identity that it came from: what the host counts, and the machine's id.
    identity: Option<(u64, Vec<u8>)>,
    /// What the file says.
    published: Option<u64>,
    /// Whether programs that run are still to be told of it.
    untold: bool,
}

impl Generation {
    /// The number.
    pub fn number(&self) -> u64 {
        self.lock().number
    }

    /// Takes the host's count and the machine's id. An identity that is repeated changes nothing.
    ///
    /// `lived` says whether programs have run: these are to be told, and must see a higher number.
    pub fn renew(&self, count: u64, machine_id: &[u8], lived: bool) {
        let mut state = self.lock();
        let identity = Some((count, machine_id.to_vec()));
        if state.identity == identity {
            return;
        }
        state.identity = identity;
        state.number = if lived { count.max(state.number.saturating_add(1)) } else { count };
        state.untold |= lived;
    }

    /// The number, once for each time that programs are to be told of it.
    pub fn to_tell(&self) -> Option<u64> {
        let mut state = self.lock();
        std::mem::take(&mut state.untold).then_some(state.number)
    }

    /// Held by whoever tells programs of a number: one after the other.
    pub fn turn(&self) -> MutexGuard<'_, ()> {
        self.telling.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts the number where programs find it, unless it is there. Where programs may `read` it just
    /// now, the file is replaced as a whole: they see the old number or the new one. Otherwise it is
    /// written in place, which costs a clone less. Whoever watches the directory is woken by both.
    ///
    /// # Errors
    /// What the file system says.
    pub fn publish(&self, root: &Path, read: bool) -> io::Result<()> {
        let mut state = self.lock();
        if state.published == Some(state.number) {
            return Ok(());
        }
        let text = format!("{}\n", state.number);
        let file = root.join(DIRECTORY).join(NAME);
        if read {
            replace_whole(&file, text.as_bytes())?;
        } else {
            etc::replace(&file, text.as_bytes())?;
        }
        state.published = Some(state.number);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn replace_whole(file: &Path, text: &[u8]) -> io::Result<()> {
    let directory = file.parent().unwrap_or(file);
    fs::create_dir_all(directory)?;
    let beside = directory.join(".generation.new");
    // Whatever a program has put there must neither be written through nor waited for.
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    etc::create(&beside)?.write_all(text)?;
    fs::rename(&beside, file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    const SOURCE: &[u8] = b"source";
    const CHILD: &[u8] = b"child";

    #[test]
    fn before_programs_run_it_is_the_hosts_count() {
        let generation = Generation::default();
        generation.renew(0, b"template", false);
        generation.renew(1, SOURCE, false);
        assert_eq!((generation.number(), generation.to_tell()), (1, None));
    }

    #[test]
    fn programs_never_see_the_same_number_in_two_lives() {
        let generation = Generation::default();
        generation.renew(7, SOURCE, false);
        // A fork, whose host counts from 1 again.
        generation.renew(1, CHILD, true);
        assert_eq!(generation.number(), 8);
        assert_eq!((generation.to_tell(), generation.to_tell()), (Some(8), None));
        // Its restore, then the same identity once more.
        generation.renew(20, CHILD, true);
        assert_eq!(generation.to_tell(), Some(20));
        generation.renew(20, CHILD, true);
        assert_eq!((generation.number(), generation.to_tell()), (20, None));
    }

    #[test]
    fn the_file_is_replaced_as_a_whole() {
        let scratch = Scratch::new("generation");
        let generation = Generation::default();
        generation.renew(3, SOURCE, false);
        generation.publish(scratch.path(), false).unwrap();
        let file = scratch.path().join("run/hutch/generation");
        let before = fs::File::open(&file).unwrap();
        std::os::unix::fs::symlink("/dev/full", file.with_file_name(".generation.new")).unwrap();
        generation.renew(4, SOURCE, false);
        generation.publish(scratch.path(), true).unwrap();
        assert_eq!(io::read_to_string(before).unwrap(), "3\n");
        assert_eq!(fs::read_to_string(&file).unwrap(), "4\n");
        fs::write(&file, "a program's\n").unwrap();
        generation.publish(scratch.path(), true).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "a program's\n", "it is written once");
    }
}
