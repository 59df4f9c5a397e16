// The binary under test, configured by its environment alone.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { mkdtemp, rename, rm, readFile, open, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

export const MASTER_KEY = 'contract-master-key-of-at-least-32-characters';

/** The library that moves a process's clock, where it is installed. */
export const FAKETIME = ['x86_64-linux-gnu', 'aarch64-linux-gnu']
  .map((machine) => `/usr/lib/${machine}/faketime/libfaketimeMT.so.1`)
  .find(existsSync);

/** A port that nobody listens on, outside of those that the system gives to others meanwhile. */
async function freePort() {
  for (;;) {
    const port = 20_000 + Math.floor(Math.random() * 12_000);
    const server = createServer().listen(port, '127.0.0.1');
    try {
      await once(server, 'listening');
    } catch {
      continue;
    }
    server.close();
    await once(server, 'close');
    return port;
  }
}

/** Starts `alchemi serve` and waits until it is ready. `settings` is TOML. `setClock` moves its clock, with FAKETIME. */
export async function startGateway(settings, more = {}) {
  const [folder, port] = [await mkdtemp(join(tmpdir(), 'alchemi-contract-')), await freePort()];
  await writeFile(join(folder, 'alchemi.toml'), settings);
  const log = await open(join(folder, 'log'), 'w');
  const url = `http://127.0.0.1:${port}`;
  const clock = join(folder, 'clock');
  const setClock = async (seconds) => {
    // It must not be read half written.
    await writeFile(`${clock}.new`, `+${seconds}\n`);
    await rename(`${clock}.new`, clock);
  };
  await setClock(0);
  const child = spawn(process.env.ALCHEMI_BIN, ['serve', '--config', join(folder, 'alchemi.toml')], {
    cwd: folder,
    stdio: ['ignore', log.fd, log.fd],
    env: {
      PATH: process.env.PATH,
      ALCHEMI_LISTEN: `127.0.0.1:${port}`,
      ALCHEMI_DATA_DIR: join(folder, 'data'),
      ALCHEMI_MASTER_KEY: MASTER_KEY,
      ...(FAKETIME && {
        LD_PRELOAD: FAKETIME,
        FAKETIME_TIMESTAMP_FILE: clock,
        FAKETIME_NO_CACHE: '1',
        FAKETIME_DONT_FAKE_MONOTONIC: '1',
      }),
      ...more,
    },
  });
  const told = () => readFile(join(folder, 'log'), 'utf8');
  const deadline = Date.now() + 30_000;
  for (;;) {
    const answer = await fetch(`${url}/healthz`).catch(() => undefined);
    if (answer?.ok) break;
    if (child.exitCode !== null || Date.now() > deadline) throw new Error(`no gateway: ${await told()}`);
    await sleep(50);
  }
  return {
    url,
    told,
    setClock,
    async stop() {
      child.kill('SIGTERM');
      if (child.exitCode === null) await once(child, 'exit');
      await log.close();
      await rm(folder, { recursive: true });
    },
  };
}
