// The gateway and an issuer that is not ours: both algorithms, logout, rotation under load, withdrawn keys, an outage.
// The keys live for 30 s here, the least that the configuration takes; the bounds are stated by the settings. The outage
// takes ten minutes by a clock that is moved.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { FAKETIME, startGateway } from './gateway.mjs';
import { Issuer, PROJECT } from './issuer.mjs';

const TTL = 30;
const MAX_STALE = 600;
const ALGORITHMS = ['RS256', 'ES256'];
let issuer;
let gateway;

before(async () => {
  issuer = await Issuer.start();
  gateway = await startGateway(`
[identity]
jwks_ttl_seconds = ${TTL}
jwks_max_stale_seconds = ${MAX_STALE}
logout_client_ids = ["leaver"]
`, { ZITADEL_ISSUER: issuer.url, ZITADEL_PROJECT_ID: PROJECT });
  issuer.logsOutAt(`${gateway.url}/v1/auth/zitadel/backchannel-logout`);
});

after(async () => {
  await gateway?.stop();
  await issuer?.down();
});

async function ask(token) {
  const response = await fetch(`${gateway.url}/v1/me/context`, { headers: { authorization: `Bearer ${token}` } });
  return { status: response.status, body: await response.json() };
}

/** Asks with fresh tokens, as fast as four callers can, until `stop` is called; counts the answers by status. */
function load() {
  const counts = {};
  let running = true;
  const callers = [0, 1, 2, 3].map(async (n) => {
    while (running) {
      const { status, body } = await ask(await issuer.token(ALGORITHMS[n % 2]));
      const what = status === 200 ? status : `${status} ${body.code}`;
      counts[what] = (counts[what] ?? 0) + 1;
    }
  });
  return async () => {
    running = false;
    await Promise.all(callers);
    return counts;
  };
}

test('tokens of both algorithms are accepted, and changed ones are not', async () => {
  for (const alg of ALGORITHMS) {
    const token = await issuer.token(alg);
    const { status, body } = await ask(token);
    assert.equal(status, 200, JSON.stringify(body));
    assert.deepEqual([body.roles, body.is_super_admin], [['super_admin'], true]);
    const [header, payload, signature] = token.split('.');
    const claims = { ...JSON.parse(Buffer.from(payload, 'base64url')), sub: 'somebody-else' };
    const changed = [header, Buffer.from(JSON.stringify(claims)).toString('base64url'), signature].join('.');
    assert.deepEqual([(await ask(changed)).status, (await ask(changed)).body.code], [401, 'token_invalid']);
  }
});

test('a logout token of theirs ends the tokens of its subject', async () => {
  const [leaving, staying] = [await issuer.token('RS256', 'leaver'), await issuer.token('RS256')];
  assert.equal((await ask(leaving)).status, 200);
  await issuer.logOut('leaver', 'session-1');
  const refused = await ask(leaving);
  assert.deepEqual([refused.status, refused.body.code], [401, 'token_revoked'], await gateway.told());
  assert.equal((await ask(staying)).status, 200);
});

test('keys rotate under load without a false refusal, and withdrawn ones stop within their time to live', async () => {
  const old = await Promise.all(ALGORITHMS.map((alg) => issuer.token(alg)));
  const stop = load();
  // Not by chance just when the set grows old.
  await sleep(3_000);
  const fetches = issuer.keyFetches;
  issuer.rotate();
  await sleep(5_000);
  assert.ok(issuer.keyFetches - fetches <= 2, `${issuer.keyFetches - fetches} key fetches`);
  for (const token of old) assert.equal((await ask(token)).status, 200, 'the former keys are published still');

  issuer.withdraw();
  const since = Date.now();
  for (const token of old) {
    for (;;) {
      const { status, body } = await ask(token);
      if (status === 401) {
        assert.equal(body.code, 'token_invalid');
        break;
      }
      assert.equal(status, 200);
      assert.ok(Date.now() - since < (TTL + 1) * 1000, 'a withdrawn key is believed for too long');
      await sleep(100);
    }
  }
  console.log(`# withdrawn keys were refused after ${((Date.now() - since) / 1000).toFixed(1)} s; the bound is ${TTL} s`);
  const counts = await stop();
  assert.deepEqual(Object.keys(counts), ['200'], JSON.stringify(counts));
  console.log(`# ${counts[200]} fresh tokens through the rotation, none refused`);
});

test('ten minutes of an outage are bridged for known keys, and then nobody can tell', {
  skip: !FAKETIME && 'libfaketime is not installed',
}, async () => {
  const fresh = await Promise.all(Array.from({ length: 80 }, (_, n) => issuer.token(ALGORITHMS[n % 2])));
  const seen = fresh.pop();
  assert.equal((await ask(seen)).status, 200);
  await issuer.down();
  let bridged = 0;
  // The keys are at most as old as their time to live, so that this is how long they must last.
  for (let passed = 0; passed < MAX_STALE - TTL; passed += 15) {
    await gateway.setClock(passed);
    for (const token of [seen, fresh.pop()]) {
      const { status, body } = await ask(token);
      assert.equal(status, 200, `after ${passed} s of an outage: ${JSON.stringify(body)}`);
    }
    bridged += 1;
  }
  await gateway.setClock(MAX_STALE + 1);
  for (const token of [seen, fresh.pop()]) {
    const { status, body } = await ask(token);
    assert.deepEqual([status, body.code], [503, 'identity_unavailable']);
  }
  console.log(`# ${bridged} unseen tokens in ten minutes of an outage, then 503`);
  await issuer.up();
  // The cooldown of the last attempt.
  await gateway.setClock(MAX_STALE + 32);
  for (const token of [seen, fresh.pop()]) assert.equal((await ask(token)).status, 200);
});
