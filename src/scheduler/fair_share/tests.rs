use super::*;

fn party(client: u8, adapter: u8) -> Party {
    let adapter = (adapter > 0).then_some(AdapterVersion([adapter; 32]));
    Party { client: ClientKey([client; 32]), adapter }
}

fn share() -> FairShare {
    FairShare::new(ShareConfig { step_tokens: 4, ..ShareConfig::default() })
}

#[test]
fn output_costs_what_its_weight_says() {
    let share = FairShare::new(ShareConfig { input_weight: 3, output_weight: 5, step_tokens: 1 });
    assert_eq!(share.cost(2, 1), 11);
}

#[test]
fn a_newcomer_is_lifted_to_the_lowest_that_is_served_and_earns_nothing_by_idling() {
    let mut share = share();
    let (a, b) = (share.join(party(1, 1), 1), share.join(party(2, 2), 1));
    share.charge(a, 100);
    share.charge(b, 40);
    let late = share.join(party(3, 3), 1);
    assert_eq!(share.level(late), share.level(b));
    share.leave(late);
    share.charge(a, 50);
    share.charge(b, 50);
    let back = share.join(party(3, 3), 1);
    assert_eq!(share.level(back), share.level(b));
}

#[test]
fn leaving_does_not_forgive_a_debt() {
    let mut share = share();
    let (a, b) = (share.join(party(1, 1), 1), share.join(party(2, 2), 1));
    share.charge(a, 100);
    let debt = share.level(a);
    share.leave(a);
    let a = share.join(party(1, 1), 1);
    assert_eq!(share.level(a), debt);
    assert!(share.level(b) < debt);
}

#[test]
fn after_a_pause_of_all_nobody_is_ahead_of_the_last_to_leave() {
    let mut share = share();
    let a = share.join(party(1, 1), 1);
    share.charge(a, 100);
    share.leave(a);
    let b = share.join(party(2, 2), 1);
    let a = share.join(party(1, 1), 1);
    assert_eq!(share.level(a), share.level(b));
}

#[test]
fn two_low_accounts_make_no_party_that_is_far_below_all() {
    let mut share = share();
    let low_client = share.join(party(1, 1), 1);
    let low_adapter = share.join(party(2, 2), 1);
    share.account_mut(low_client.adapter).served = 500;
    share.account_mut(low_adapter.client).served = 500;
    let fresh = share.join(party(3, 3), 1);
    assert_eq!(share.level(fresh), 500, "each account alone would begin at 0");
}

#[test]
fn a_place_is_given_to_who_has_fewer_and_never_both_ways() {
    let mut share = share();
    let (flood, polite) = (share.join(party(1, 1), 3), share.join(party(1, 2), 1));
    share.charge(flood, 10);
    assert!(!share.gives_way(flood, polite), "nobody runs");
    (0..2).for_each(|_| share.started(flood));
    assert!(share.gives_way(flood, polite) && !share.gives_way(polite, flood));
    share.started(polite);
    assert!(!share.gives_way(flood, polite), "2 and 1 is as even as it gets");
    let stranger = share.join(party(2, 3), 1);
    (0..4).for_each(|_| share.started(flood));
    assert!(share.gives_way(flood, stranger));
    assert!(!share.gives_way(flood, flood));
}

#[test]
fn who_is_alone_has_no_bound_and_who_crowds_others_has_one() {
    let mut share = share();
    let flood = share.join(party(1, 1), 8);
    share.begin_step();
    share.take_rows(flood, 100);
    assert_eq!(share.allowance(flood), usize::MAX);
    let polite = share.join(party(1, 2), 1);
    share.begin_step();
    assert_eq!((share.allowance(flood), share.allowance(polite)), (4, usize::MAX));
    share.take_rows(flood, 3);
    assert_eq!(share.allowance(flood), 1);
    share.leave(polite);
    assert_eq!(share.allowance(flood), usize::MAX, "it has had no row of late");
}

#[test]
fn who_came_by_of_late_counts_for_a_while() {
    let mut share = share();
    let (flood, polite) = (share.join(party(1, 1), 8), share.join(party(2, 2), 1));
    share.begin_step();
    share.take_rows(flood, 100);
    share.take_rows(polite, 1);
    share.leave(polite);
    for _ in 0..EPOCH - 2 {
        share.begin_step();
        share.take_rows(flood, 4);
        assert_eq!(share.allowance(flood), 0);
    }
    for _ in 0..2 * EPOCH {
        share.begin_step();
    }
    assert_eq!(share.allowance(flood), usize::MAX);
}

#[test]
fn equals_do_not_hold_each_other_back() {
    let mut share = share();
    let (a, b) = (share.join(party(1, 1), 8), share.join(party(2, 2), 8));
    for _ in 0..3 * EPOCH {
        share.begin_step();
        assert_eq!((share.allowance(a), share.allowance(b)), (usize::MAX, usize::MAX));
        share.take_rows(a, 32);
        share.take_rows(b, 30);
    }
}

#[test]
fn what_is_remembered_of_those_who_left_is_bounded() {
    let mut share = share();
    let stays = share.join(party(255, 255), 1);
    for n in 0..3 * MAX_IDLE as u32 {
        let mut client = [1; 32];
        client[..4].copy_from_slice(&n.to_le_bytes());
        let id = share.join(Party { client: ClientKey(client), adapter: None }, 1);
        share.take_rows(id, 1);
        share.charge(id, 1);
        share.leave(id);
    }
    assert!(share.accounts.len() <= MAX_IDLE + 4);
    assert!(share.kinds[0].active <= MAX_IDLE + 1);
    assert_eq!(share.num_parties(), 1);
    assert_eq!(share.level(stays), 0);
}
