//! What lease requests do to the state. An ended lease takes its keys with it, all at one revision.

use etcd_client::proto::{
    PbLeaseGrantRequest, PbLeaseGrantResponse, PbLeaseKeepAliveResponse, PbLeaseLeasesResponse,
    PbLeaseRevokeResponse, PbLeaseStatus, PbLeaseTimeToLiveRequest, PbLeaseTimeToLiveResponse,
};

use super::error::ApiError;
use super::key_range::KeyRange;
use super::lease::Tick;
use super::limits::{ENDED_AT_ONCE, LEASES};
use super::state::{ROW, State};

impl State {
    /// Starts a lease. Without an id in the request, the first free one from `fresh` on is taken.
    pub(crate) fn grant(
        &mut self,
        request: &PbLeaseGrantRequest,
        fresh: i64,
        now: Tick,
    ) -> Result<PbLeaseGrantResponse, ApiError> {
        self.check_space()?;
        if self.leases.len() >= LEASES {
            return Err(ApiError::NoSpace);
        }
        let id = if request.id == 0 { self.free_lease(fresh) } else { request.id };
        let ttl = self.leases.grant(id, request.ttl, now)?;
        self.lease_changes.push((id, Some(ttl)));
        Ok(PbLeaseGrantResponse { header: Some(self.header()), id, ttl, error: String::new() })
    }

    pub(crate) fn revoke(&mut self, id: i64) -> Result<PbLeaseRevokeResponse, ApiError> {
        let keys = self.leases.revoke(id)?;
        self.lease_changes.push((id, None));
        for key in keys {
            self.mvcc.delete(&KeyRange::One(key.to_vec()));
        }
        self.mvcc.seal();
        Ok(PbLeaseRevokeResponse { header: Some(self.header()) })
    }

    /// A lease that is gone is answered with a time of 0, not an error.
    pub(crate) fn keep_alive(&mut self, id: i64, now: Tick) -> PbLeaseKeepAliveResponse {
        let ttl = self.leases.keep_alive(id, now).unwrap_or(0);
        PbLeaseKeepAliveResponse { header: Some(self.header()), id, ttl }
    }

    /// A lease that is gone is answered with a time of -1, not an error.
    pub(crate) fn time_to_live(
        &self,
        request: &PbLeaseTimeToLiveRequest,
        now: Tick,
    ) -> Result<PbLeaseTimeToLiveResponse, ApiError> {
        let header = Some(self.header());
        if request.keys {
            self.charge(self.leases.keys(request.id).map(|key| key.len() + ROW))?;
        }
        Ok(match self.leases.status(request.id, now) {
            None => PbLeaseTimeToLiveResponse { header, id: request.id, ttl: -1, ..Default::default() },
            Some(lease) => PbLeaseTimeToLiveResponse {
                header,
                id: request.id,
                ttl: lease.left,
                granted_ttl: lease.granted,
                keys: if request.keys {
                    self.leases.keys(request.id).map(<[u8]>::to_vec).collect()
                } else {
                    Vec::new()
                },
            },
        })
    }

    pub(crate) fn leases(&self) -> Result<PbLeaseLeasesResponse, ApiError> {
        self.charge(std::iter::once(self.leases.len() * size_of::<PbLeaseStatus>()))?;
        let leases = self.leases.ids().map(|id| PbLeaseStatus { id }).collect();
        Ok(PbLeaseLeasesResponse { header: Some(self.header()), leases })
    }

    /// Ends leases whose time is over. Those that are many more wait for the next batch.
    pub(crate) fn expire(&mut self, now: Tick) {
        for id in self.leases.expired(now).take(ENDED_AT_ONCE).collect::<Vec<_>>() {
            // It was listed a moment ago, so it is there.
            let _ = self.revoke(id);
        }
    }

    /// When to call `expire` next.
    pub(crate) fn next_deadline(&self) -> Option<Tick> {
        self.leases.next_deadline()
    }

    fn free_lease(&self, fresh: i64) -> i64 {
        let mut id = fresh & i64::MAX;
        while id == 0 || self.leases.exists(id) {
            // Far from here: whoever takes a row of numbers does not make this walk along it.
            id = id.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1) & i64::MAX;
        }
        id
    }
}
