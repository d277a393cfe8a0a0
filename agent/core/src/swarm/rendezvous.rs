//! Which agent is the steward of a swarm: rendezvous hashing (D. Thaler, C. Ravishankar, "Using
//! Name-Based Mappings to Increase Hit Rates", 1998).
//!
//! All agents that see the same members compute the same ranking, and when one goes only its own
//! swarms move, each to the next in its ranking.

use std::cmp::Reverse;

use branchline_hashing::SwarmId;

use crate::PeerId;

/// The `count` first of `members` in the ranking of `swarm`, first one first: BLAKE3 over the
/// swarm's id and the member's key, the highest first.
pub fn first_in_rank(
    swarm: &SwarmId,
    members: impl IntoIterator<Item = PeerId>,
    count: usize,
) -> Vec<PeerId> {
    let mut ranked: Vec<_> = members
        .into_iter()
        .map(|member| (Reverse(weight(swarm, &member)), member))
        .collect();
    if count < ranked.len() {
        ranked.select_nth_unstable(count);
        ranked.truncate(count);
    }
    ranked.sort_unstable();
    let mut first: Vec<PeerId> = ranked.into_iter().map(|(_, member)| member).collect();
    // Collected in place, it would keep the room of all members.
    first.shrink_to_fit();
    first
}

fn weight(swarm: &SwarmId, member: &PeerId) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(swarm.as_bytes());
    hasher.update(member.public_key());
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn peer(number: u8) -> PeerId {
        PeerId::from_public_key([number; 32])
    }

    fn swarm(number: u8) -> SwarmId {
        SwarmId::from_bytes([number; 32])
    }

    proptest! {
        #[test]
        fn when_a_member_goes_the_others_keep_their_order(gone in 0u8..20, id: u8) {
            let all = first_in_rank(&swarm(id), (0..20).map(peer), 20);
            let rest = first_in_rank(&swarm(id), (0..20).filter(|n| *n != gone).map(peer), 20);
            let kept: Vec<_> = all.into_iter().filter(|p| *p != peer(gone)).collect();
            prop_assert_eq!(rest, kept);
        }

        #[test]
        fn the_first_few_are_the_beginning_of_the_whole_ranking(count in 0usize..25, id: u8) {
            let all = first_in_rank(&swarm(id), (0..20).map(peer), 20);
            let few = first_in_rank(&swarm(id), (0..20).rev().map(peer), count);
            prop_assert_eq!(&few[..], &all[..count.min(20)]);
        }
    }

    #[test]
    fn swarms_are_spread_over_the_members() {
        let firsts: Vec<_> = (0..200)
            .flat_map(|id| first_in_rank(&swarm(id), (0..10).map(peer), 1))
            .collect();
        for number in 0..10 {
            let share = firsts
                .iter()
                .filter(|first| **first == peer(number))
                .count();
            assert!(
                (5..50).contains(&share),
                "{share} of 200 swarms for one of ten"
            );
        }
    }
}
