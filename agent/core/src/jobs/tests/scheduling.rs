//! Who runs, and who waits for whom.

use std::time::Duration;

use super::world::*;
use super::*;

fn queue(world: &mut World, priorities: &[Priority]) -> Vec<JobId> {
    let jobs = priorities.iter();
    let made = jobs.map(|priority| world.create(ALICE, spec(1, *priority)).expect("a job"));
    made.collect()
}

fn running(world: &World) -> Vec<u64> {
    let active = world.jobs.active.iter();
    active.map(|id| id.0).collect()
}

use Priority::{Foreground, High, Low, Normal};

#[test]
fn higher_priorities_go_first_and_what_is_preempted_is_queued() {
    let mut world = World::new(small());
    let ids = queue(&mut world, &[Low, Normal, High]);
    assert_eq!(running(&world), [2, 3]);
    assert_eq!(world.kind(ids[0]), StateKind::Queued);
    assert_eq!(world.file_states(ids[0]), ["stopping"]);
    world.let_stop();
    assert_eq!(world.file_states(ids[0]), ["waiting"]);
    world.tell(ids[2], FileIndex(0), staged());
    assert_eq!(running(&world), [1, 2]);
}

#[test]
fn foreground_jobs_run_together_and_background_ones_beside_them() {
    let mut world = World::new(small());
    queue(&mut world, &[Low, Low, Low, Foreground, Foreground]);
    assert_eq!(running(&world), [1, 2, 4, 5]);
}

#[test]
fn equals_take_turns() {
    let mut world = World::new(small());
    let ids = queue(&mut world, &[Normal; 5]);
    let mut turns = [0; 5];
    for _ in 0..10 {
        for id in running(&world) {
            turns[usize::try_from(id - 1).expect("small")] += 1;
            world.progress(JobId(id), FileIndex(0));
        }
        let alive = Duration::from_secs(50);
        for _ in 0..6 {
            world.pass(alive);
            for id in running(&world).into_iter().map(JobId) {
                if world
                    .transfers
                    .get(&(id, FileIndex(0)))
                    .is_some_and(|it| !it.stopping)
                {
                    world.progress(id, FileIndex(0));
                }
            }
            world.let_stop();
        }
    }
    assert_eq!(turns, [4; 5], "of {ids:?}");
}

#[test]
fn a_stuck_job_lets_even_lower_ones_go_first() {
    let mut world = World::new(small());
    let ids = queue(&mut world, &[High, High, Low]);
    for _ in 0..2 {
        world.pass(Duration::from_secs(40));
        world.progress(ids[0], FileIndex(0));
    }
    world.let_stop();
    assert_eq!(running(&world), [1, 3]);
    world.progress(ids[2], FileIndex(0));
    let why = world.job(ids[1]).summary.why;
    assert!(
        why.starts_with("waiting for other jobs: nothing came in its last turn"),
        "{why}"
    );
    world.pass(STUCK_RESTS);
    world.let_stop();
    assert!(running(&world).contains(&2), "it has its turn again");
}

#[test]
fn a_stuck_job_goes_on_when_nobody_waits() {
    let mut world = World::new(small());
    queue(&mut world, &[Low]);
    world.pass(Duration::from_secs(1_000));
    assert_eq!(running(&world), [1]);
    assert_eq!(world.started.len(), 1);
}

#[test]
fn a_large_job_gives_places_to_those_that_come() {
    let mut world = World::new(small());
    let large = world.create(ALICE, spec(9, Foreground)).expect("a job");
    assert_eq!(world.transfers.len(), 2);
    let small = world.create(ALICE, spec(1, Foreground)).expect("a job");
    assert_eq!(world.kind(small), StateKind::Queued);
    world.let_stop();
    assert_eq!(world.kind(small), StateKind::Connecting);
    assert_eq!(world.kind(large), StateKind::Connecting);
    world.tell(small, FileIndex(0), staged());
    assert_eq!(world.transfers.len(), 2, "and has them back");
}

#[test]
fn a_job_that_changes_sides_keeps_the_bounds() {
    let mut world = World::new(small());
    let ids = queue(&mut world, &[Normal, Normal, Foreground]);
    let change = |priority| {
        Request::Set(Box::new(SettingsChange {
            priority: Some(priority),
            ..SettingsChange::default()
        }))
    };
    world.ask(ids[0], change(Foreground)).expect("set");
    world.ask(ids[2], change(Low)).expect("set");
    world.let_stop();
    assert_eq!(running(&world), [1, 2, 3]);
    let order = &world.transfers[&(ids[0], FileIndex(0))].order;
    assert_eq!(order.priority, Foreground);
}

#[test]
fn after_a_restart_jobs_go_on_by_themselves() {
    let mut world = World::new(small());
    let ids = queue(&mut world, &[Normal, Normal, High]);
    world.let_stop();
    world.tell(ids[2], FileIndex(0), staged());
    world.restart();
    assert_eq!(running(&world), [1, 2]);
    assert_eq!(world.kind(ids[2]), StateKind::Transferred);
}
