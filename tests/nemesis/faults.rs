//! What befalls a deployment.

use std::fmt;
use std::process::Command;
use std::time::Duration;

use crate::cluster::Stopped;
use crate::process;
use crate::seed::Dice;
use crate::wire::Spoil;
use crate::world::{LEASE, World};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// `kill -9` of a gateway.
    Kill,
    /// The same, and its data folder is gone: another machine takes its place.
    Wipe,
    /// A gateway stands still (SIGSTOP), then goes on.
    Freeze,
    /// The same, until others have taken it for dead and ended its leases.
    Coma,
    /// `pg_ctl stop -m immediate`.
    DatabaseStop,
    /// The disk of a gateway's data folder has no byte left.
    DiskFull,
    /// The clock of a gateway's machine is moved, by up to an hour either way, and back.
    ClockJump,
    /// Connections between gateways and upstream.
    Upstream(Spoil),
    /// Connections between gateways and database.
    Database(Spoil),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill => f.write_str("kill -9 of a gateway"),
            Self::Wipe => f.write_str("kill -9 of a gateway, and its data folder is gone"),
            Self::Freeze => f.write_str("a gateway frozen"),
            Self::Coma => f.write_str("a gateway frozen beyond its leases"),
            Self::DatabaseStop => f.write_str("database stopped at once"),
            Self::DiskFull => f.write_str("disk full"),
            Self::ClockJump => f.write_str("clock jump"),
            Self::Upstream(spoil) => write!(f, "upstream: {}", name(*spoil)),
            Self::Database(spoil) => write!(f, "database: {}", name(*spoil)),
        }
    }
}

fn name(spoil: Spoil) -> &'static str {
    match spoil {
        Spoil::Delay => "delay",
        Spoil::Reset => "reset",
        Spoil::HalfClose => "half-close",
        Spoil::Stall => "stall",
        Spoil::Corrupt => "corrupt",
    }
}

/// Faults of machines and processes.
const LOCAL: [Fault; 5] = [Fault::Kill, Fault::Freeze, Fault::DatabaseStop, Fault::DiskFull, Fault::ClockJump];

/// What a seed brings: a fault of a machine, one of the network, then both at once. The first ten seeds bring them all
/// but a coma, which takes long: the next ten have that in place of a freeze, and so on in turn.
pub(crate) fn plan(seed: u64) -> [Vec<Fault>; 3] {
    let at = |n: u64| (n % 5) as usize;
    let local = match LOCAL[at(seed + seed / 10)] {
        Fault::Freeze if seed / 10 % 2 == 1 => Fault::Coma,
        Fault::Kill if seed % 10 >= 5 => Fault::Wipe,
        local => local,
    };
    let spoil = Spoil::ALL[at(seed)];
    let wire = if seed % 10 < 5 { Fault::Upstream(spoil) } else { Fault::Database(spoil) };
    [vec![local], vec![wire], vec![local, wire]]
}

impl Fault {
    /// How long it lasts at least.
    pub(crate) fn lasts(self) -> Duration {
        if self == Self::Coma { LEASE + Duration::from_secs(3) } else { Duration::ZERO }
    }

    /// Why it cannot be here; none if it can.
    pub(crate) fn impossible(self, world: &World) -> Option<&'static str> {
        match self {
            Self::DatabaseStop if !world.cluster.is_ours() => Some("the database server is not ours to stop"),
            Self::DiskFull if !world.small_disks => Some("only root can mount a small disk"),
            Self::ClockJump if process::faketime().is_none() => Some("libfaketime is not installed"),
            _ => None,
        }
    }
}

/// What there is to be undone.
#[derive(Debug)]
pub(crate) enum Injury {
    Killed(usize),
    Frozen(usize),
    DatabaseStopped(Stopped),
    DiskFull(usize),
    ClockMoved(usize),
    UpstreamSpoilt,
    DatabaseSpoilt,
}

impl World {
    pub(crate) fn strike(&mut self, fault: Fault, dice: &Dice) -> Injury {
        let victim = dice.below(self.gateways.len() as u64) as usize;
        match fault {
            Fault::Kill => {
                self.gateways[victim].kill();
                Injury::Killed(victim)
            }
            Fault::Wipe => {
                self.gateways[victim].kill();
                for entry in std::fs::read_dir(self.data(victim)).unwrap().map(Result::unwrap) {
                    let gone = if entry.path().is_dir() { std::fs::remove_dir_all } else { std::fs::remove_file };
                    gone(entry.path()).unwrap();
                }
                Injury::Killed(victim)
            }
            Fault::Freeze | Fault::Coma => {
                self.gateways[victim].signal("STOP");
                Injury::Frozen(victim)
            }
            Fault::DatabaseStop => Injury::DatabaseStopped(self.cluster.stop()),
            Fault::DiskFull => {
                let filler = self.data(victim).join("filler");
                // Writes until there is no room, which is the failure that is wanted.
                let _ = Command::new("dd")
                    .args(["if=/dev/zero", "bs=4096", "status=none"])
                    .arg(format!("of={}", filler.display()))
                    .stderr(std::process::Stdio::null())
                    .status();
                Injury::DiskFull(victim)
            }
            Fault::ClockJump => {
                let seconds = [-3_600, -90, 90, 3_600][dice.below(4) as usize];
                self.gateways[victim].set_clock(seconds);
                Injury::ClockMoved(victim)
            }
            Fault::Upstream(spoil) => {
                self.to_upstream.spoil(Some(spoil));
                Injury::UpstreamSpoilt
            }
            Fault::Database(spoil) => {
                self.to_database.spoil(Some(spoil));
                Injury::DatabaseSpoilt
            }
        }
    }

    pub(crate) fn heal(&mut self, injury: Injury) {
        match injury {
            Injury::Killed(victim) => self.gateways[victim].start(),
            Injury::Frozen(victim) => self.gateways[victim].signal("CONT"),
            Injury::DatabaseStopped(stopped) => stopped.start(),
            Injury::DiskFull(victim) => std::fs::remove_file(self.data(victim).join("filler")).unwrap(),
            Injury::ClockMoved(victim) => self.gateways[victim].set_clock(0),
            Injury::UpstreamSpoilt => self.to_upstream.spoil(None),
            Injury::DatabaseSpoilt => self.to_database.spoil(None),
        }
    }
}
