//! x
use netns_harness::*;
#[test]
fn go() {
    let products = flannel::Products::in_dir(std::path::Path::new("/tmp/goflannel")).unwrap();
    let spec = Spec { store: flannel::StoreKind::Etcd, ..Spec::default() };
    let start = std::time::Instant::now();
    let cluster = Cluster::up(&spec, &products).unwrap();
    println!("{:?} {:?}", start.elapsed(), cluster.pings(std::time::Duration::from_secs(1)));
    println!("{:?}", cluster.store.list("subnets"));
    println!("{:?}", cluster.daemons[0].cost());
    println!("{}", cluster.daemons[0].log());
}
