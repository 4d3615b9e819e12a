import { randomBytes } from 'node:crypto'
import { statSync, writeFileSync } from 'node:fs'
import { open } from 'node:fs/promises'
import { join } from 'node:path'
import t from 'tap'
import { Reserve } from '../../storage/file-reserve.js'
import { scratchDir } from '../harness.js'

const size = 3 * 1024 * 1024

t.test('R51, R52: what of the reserve could not be synced does not count, and is made anew', async (t) => {
  const root = scratchDir(t)
  const path = join(root, 'reserve')
  const kept = randomBytes(1024 * 1024)
  writeFileSync(path, kept)
  const file = await open(path)
  const handles = Object.getPrototypeOf(file) as typeof file
  await file.close()
  const reserve = new Reserve(root)
  let syncs = 0
  const failing = t.intercept(handles, 'sync', {
    value: () => (syncs++ === 0 ? Promise.reject(new Error('ENOSPC')) : Promise.resolve()),
  })
  await t.rejects(reserve.fill(size, 0), /ENOSPC/)
  t.equal(statSync(path).size, kept.length, 'what was there before is')
  failing.restore()
  await reserve.fill(size, 0)
  t.equal(statSync(path).size, size)
})
