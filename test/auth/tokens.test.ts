import { generateKeyPairSync, type KeyObject } from 'node:crypto'
import t from 'tap'
import { type KeySource, Tokens } from '../../src/auth/tokens.js'
import { pause } from '../harness.js'

const newKey = (): KeyObject => generateKeyPairSync('ed25519').privateKey

/** Keys that a test can rotate. */
class Keys implements KeySource {
  readonly #keys: KeyObject[]

  constructor(...keys: KeyObject[]) {
    this.#keys = keys
  }

  rotate(key: KeyObject): void {
    this.#keys.unshift(key)
  }

  async load(): Promise<readonly KeyObject[]> {
    return [...this.#keys]
  }

  async state(): Promise<string> {
    return String(this.#keys.length)
  }
}

const claims = { sub: 'ann', epoch: 1, accessToken: undefined, scopes: [] }

t.test(
  'JW: a token of a key that came a moment ago is good, whenever the worker last looked for keys',
  async (t) => {
    // Timers may fire a little before their time: of twenty waits some do.
    for (let n = 0; n < 20; n++) {
      const [old, young] = [newKey(), newKey()]
      const before = await new Tokens(new Keys(old), 'boathouse', 60).issue(claims)
      const after = await new Tokens(new Keys(young), 'boathouse', 60).issue(claims)
      const keys = new Keys(old)
      const verifier = new Tokens(keys, 'boathouse', 60)
      t.equal((await verifier.verify(before))?.sub, 'ann') // it has looked just now
      keys.rotate(young)
      await pause(n)
      t.equal((await verifier.verify(after))?.sub, 'ann', `${n} ms later`)
    }
  },
)

t.test('tokens of unknown keys, many at once, cost one look for keys', async (t) => {
  const keys = new Keys(newKey())
  let looks = 0
  const source: KeySource = {
    load: () => keys.load(),
    state: () => {
      looks++
      return keys.state()
    },
  }
  const verifier = new Tokens(source, 'boathouse', 60)
  await verifier.verify(await new Tokens(keys, 'boathouse', 60).issue(claims))
  const before = looks
  const foreign = await new Tokens(new Keys(newKey()), 'boathouse', 60).issue(claims)
  const verdicts = await Promise.all(Array.from({ length: 100 }, () => verifier.verify(foreign)))
  t.ok(verdicts.every((verdict) => verdict === undefined))
  t.ok(looks - before <= 2, `${looks - before} looks`)
})
