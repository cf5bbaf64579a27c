//! What the loss of metads means: which are silent, and whether the others would still be a majority with one less.
//! Pure: sets of voters in, checks out.

use crate::raft::types::MetadId;
use api::v1;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Fewer metads than this cannot lose one.
const ENOUGH: usize = 3;
/// Entries that a follower may lack and still count as one that follows.
const LAG_MAX: u64 = 1_000;

/// One metad as the leader sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Peer {
    pub id: MetadId,
    pub address: String,
    /// Entries of the log that it lacks, as far as the leader knows.
    pub lag: u64,
    /// For how long it has not answered, if it does not.
    pub silent: Option<Duration>,
}

impl Peer {
    fn counts(&self) -> bool {
        self.silent.is_none() && self.lag <= LAG_MAX
    }

    /// What is wrong with it, if anything.
    fn check(&self, wall_ms: u64) -> Option<v1::Check> {
        let Peer { id, address, lag, .. } = self;
        let (code, text, since_ms, action) = match self.silent {
            Some(for_so_long) => {
                let ms = u64::try_from(for_so_long.as_millis()).unwrap_or(u64::MAX);
                let action = format!(
                    "start it; if it is gone for good: blockctl cluster join for another, then blockctl cluster leave --id {id}"
                );
                let text = format!("metad {id} at {address} does not answer");
                ("METAD_DOWN", text, Some(wall_ms.saturating_sub(ms)), action)
            }
            None if *lag > LAG_MAX => {
                let text = format!("metad {id} at {address} lacks {lag} entries of the log");
                ("METAD_BEHIND", text, None, "it catches up".to_owned())
            }
            None => return None,
        };
        Some(v1::Check { health: v1::Health::Warn.into(), code: code.into(), text, since_ms, action })
    }
}

/// What is not well with the metads, and whether they survive the loss of one more.
///
/// `configs`: the voters; two sets while the members change, and each needs a majority of its own.
#[must_use]
pub fn judge(
    configs: &[BTreeSet<MetadId>],
    peers: &BTreeMap<MetadId, Peer>,
    wall_ms: u64,
) -> (Vec<v1::Check>, bool) {
    let voters: BTreeSet<MetadId> = configs.iter().flatten().copied().collect();
    let mut checks: Vec<v1::Check> =
        voters.iter().filter_map(|id| peers.get(id)).filter_map(|p| p.check(wall_ms)).collect();
    if voters.len() < ENOUGH {
        let n = voters.len();
        checks.push(v1::Check {
            health: v1::Health::Warn.into(),
            code: "METAD_FEW".into(),
            text: format!("there are {n} metads: with one less none can lead"),
            since_ms: None,
            action: "start two more on other machines: blockctl cluster join".into(),
        });
    }
    let survives = |config: &BTreeSet<MetadId>| {
        let good = config.iter().filter(|id| peers.get(*id).is_some_and(Peer::counts)).count();
        good > config.len() / 2 + 1
    };
    (checks, configs.iter().all(survives))
}

/// Without metad `id` the other voters need a majority among themselves. Those who do not answer, if they are too many
/// for that: such a change could never be decided, and nothing after it either.
#[must_use]
pub fn missing_without(
    id: MetadId,
    voters: &BTreeSet<MetadId>,
    peers: &BTreeMap<MetadId, Peer>,
) -> Option<Vec<MetadId>> {
    let rest: Vec<MetadId> = voters.iter().copied().filter(|v| *v != id).collect();
    let silent = |v: &MetadId| peers.get(v).is_none_or(|p| p.silent.is_some());
    let missing: Vec<MetadId> = rest.iter().copied().filter(silent).collect();
    ((rest.len() - missing.len()) * 2 <= rest.len()).then_some(missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peers(n: u64, silent: &[u64]) -> (Vec<BTreeSet<MetadId>>, BTreeMap<MetadId, Peer>) {
        let peer = |id| Peer {
            id,
            address: format!("m{id}:1"),
            lag: 0,
            silent: silent.contains(&id).then_some(Duration::from_secs(4)),
        };
        (vec![(1..=n).collect()], (1..=n).map(|id| (id, peer(id))).collect())
    }

    fn codes(checks: &[v1::Check]) -> Vec<&str> {
        checks.iter().map(|c| c.code.as_str()).collect()
    }

    #[test]
    fn a_dead_metad_of_three_is_named_and_another_must_not_follow() {
        let (voters, all) = peers(3, &[]);
        assert_eq!(judge(&voters, &all, 9_000), (Vec::new(), true));
        let (voters, all) = peers(3, &[2]);
        let (checks, survives) = judge(&voters, &all, 9_000);
        assert_eq!((codes(&checks), survives), (vec!["METAD_DOWN"], false));
        assert_eq!(checks[0].since_ms, Some(5_000));
        assert_eq!(checks[0].text, "metad 2 at m2:1 does not answer");
    }

    #[test]
    fn a_dead_metad_of_five_leaves_room_for_one_more() {
        let (voters, all) = peers(5, &[2]);
        assert!(judge(&voters, &all, 0).1);
        let (voters, all) = peers(5, &[2, 4]);
        let (checks, survives) = judge(&voters, &all, 0);
        assert_eq!((codes(&checks), survives), (vec!["METAD_DOWN", "METAD_DOWN"], false));
    }

    #[test]
    fn one_or_two_metads_are_too_few_to_lose_one() {
        for n in [1, 2] {
            let (voters, all) = peers(n, &[]);
            let (checks, survives) = judge(&voters, &all, 0);
            assert_eq!((codes(&checks), survives), (vec!["METAD_FEW"], false), "{n}");
        }
    }

    #[test]
    fn one_that_answers_but_lags_does_not_count() {
        let (voters, mut all) = peers(3, &[]);
        all.get_mut(&3).unwrap().lag = LAG_MAX + 1;
        let (checks, survives) = judge(&voters, &all, 0);
        assert_eq!((codes(&checks), survives), (vec!["METAD_BEHIND"], false));
    }

    #[test]
    fn nobody_leaves_whose_vote_the_others_need() {
        let without = |n, silent: &[u64], id| {
            let (voters, all) = peers(n, silent);
            missing_without(id, &voters[0], &all)
        };
        assert_eq!(without(3, &[], 2), None);
        assert_eq!(without(3, &[2], 2), None, "the dead one itself may go");
        assert_eq!(without(3, &[2], 3), Some(vec![2]), "one of two is no majority");
        assert_eq!(without(4, &[2], 3), None);
        assert_eq!(without(5, &[1, 2], 3), Some(vec![1, 2]));
        assert_eq!(without(5, &[1, 2], 2), None);
    }

    #[test]
    fn while_members_change_both_sets_must_survive() {
        let (_, all) = peers(5, &[5]);
        let (old, new) = (BTreeSet::from([1, 2, 3]), BTreeSet::from([3, 4, 5]));
        assert!(judge(std::slice::from_ref(&old), &all, 0).1);
        assert!(!judge(&[old, new], &all, 0).1);
    }
}
