// The stand-in for Zitadel's management side as a process; see stand_in.rs.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';

export async function startStandIn() {
  const child = spawn(process.env.ZITADEL_STAND_IN, { stdio: ['pipe', 'pipe', 'inherit'] });
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  const line = async () => JSON.parse((await lines.next()).value);
  return {
    ...(await line()),
    /** What was said since the last time. */
    async exchanges() {
      child.stdin.write('exchanges\n');
      return line();
    },
    async stop() {
      child.stdin.end();
      if (child.exitCode === null) await once(child, 'exit');
    },
  };
}
