import t from 'tap'
import { Sharing } from '../../src/mirror/sharing.js'

/*
 * Work that several workers share. What comes of it over HTTP is in mirror.test.ts and crowds.test.ts.
 */

const nothing = async () => undefined
const unused = async () => 'nothing was to be done'

t.test('who waits for a worker that cannot say that it has ended is told why', async (t) => {
  const full = new Error('no room')
  const store = { takeLease: async () => false, releaseLease: nothing }
  const check = () => Promise.reject(full)
  const sharing = new Sharing(store, () => 'me', check)
  await t.rejects(sharing.share('key', nothing, unused), full)
})

t.test('who waits for a worker that is slow is served by it', async (t) => {
  let checks = 0
  const store = { takeLease: async () => false, releaseLease: nothing }
  const check = async () => {
    checks++
  }
  const sharing = new Sharing(store, () => 'me', check)
  const find = async () => (checks >= 2 ? 'what the other has found' : undefined)
  t.equal(await sharing.share('key', find, unused), 'what the other has found')
})
