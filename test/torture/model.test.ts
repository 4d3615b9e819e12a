import t from 'tap'
import { type Contents, type Key, Model, type Value } from './model.js'

const tag: Key = { kind: 'tag', repository: 'r', name: 'latest' }
const other: Key = { kind: 'tag', repository: 'r', name: '1.0' }
const manifest: Key = { kind: 'manifest', repository: 'r', name: 'sha256:a' }

/** A store that holds these values. */
function holding(...entries: [Key, Value][]): Contents {
  return {
    value: (key) => entries.find(([{ kind, name }]) => kind === key.kind && name === key.name)?.[1],
    keys: () => entries.filter(([, value]) => value !== undefined).map(([key]) => key),
  }
}

/** A model in which these tags were set, one after the other, and acknowledged. */
function modelWith(...entries: [Key, Value][]): Model {
  const model = new Model()
  for (const [key, value] of entries) {
    model.settle(model.begin('PUT', [{ ...key, value }]), 'acknowledged')
  }
  return model
}

t.test('what was acknowledged must be there, and only the last of it', async (t) => {
  const model = modelWith([tag, 'sha256:a'], [tag, 'sha256:b'])
  t.same([...model.legal(tag)], ['sha256:b'])
  t.same(model.judge(holding([tag, 'sha256:b'])), [])
  t.match(model.judge(holding()), [/^I1 tag r:latest is absent/])
})

t.test('what was refused must not be there', async (t) => {
  const model = modelWith([tag, 'sha256:a'])
  model.settle(model.begin('PUT', [{ ...tag, value: 'sha256:b' }]), 'refused')
  t.match(model.judge(holding([tag, 'sha256:b'])), [/^I4 tag r:latest is sha256:b/])
})

t.test(
  'what nobody answered for may have happened, until something acknowledged comes after it',
  async (t) => {
    const model = modelWith([tag, 'sha256:a'])
    model.settle(model.begin('PUT', [{ ...tag, value: 'sha256:b' }]), 'unknown')
    t.same([...model.legal(tag)], ['sha256:a', 'sha256:b'])
    model.settle(model.begin('DELETE', [{ ...tag, value: undefined }]), 'acknowledged')
    t.same([...model.legal(tag)], [undefined])
    t.match(model.judge(holding([tag, 'sha256:b'])), [/^I5 tag r:latest/])
  },
)

t.test('of two at the same time either may be the last', async (t) => {
  const model = new Model()
  const first = model.begin('PUT', [{ ...tag, value: 'sha256:a' }])
  const second = model.begin('PUT', [{ ...tag, value: 'sha256:b' }])
  model.settle(second, 'acknowledged')
  model.settle(first, 'acknowledged')
  t.same([...model.legal(tag)], ['sha256:a', 'sha256:b'])
})

t.test('a read sees what was there at a moment of its own', async (t) => {
  const model = modelWith([tag, 'sha256:a'])
  const start = model.tick()
  const operation = model.begin('PUT', [{ ...tag, value: 'sha256:b' }])
  const before = { start, end: operation.start }
  model.settle(operation, 'acknowledged')
  t.same([...model.legal(tag, before)], ['sha256:a'])
  t.same([...model.legal(tag, { start, end: model.tick() })], ['sha256:a', 'sha256:b'])
})

t.test('once looked at, an open question is closed', async (t) => {
  const model = modelWith([tag, 'sha256:a'])
  model.settle(model.begin('PUT', [{ ...tag, value: 'sha256:b' }]), 'unknown')
  t.same(model.judge(holding([tag, 'sha256:a'])), [])
  t.match(model.judge(holding([tag, 'sha256:b'])), [/^I4 tag r:latest is sha256:b/])
})

t.test('a deleted manifest takes its own tags along and no others', async (t) => {
  const model = modelWith([manifest, 'present'], [tag, 'sha256:a'], [other, 'sha256:b'])
  const effects = [
    { ...manifest, value: undefined },
    { kind: 'tags-of', repository: 'r', digest: 'sha256:a' } as const,
  ]
  model.settle(model.begin('DELETE', effects), 'acknowledged')
  t.same([...model.legal(tag)], [undefined])
  t.same([...model.legal(other)], ['sha256:b'])
})

t.test('an operation without an answer happened whole or not at all', async (t) => {
  const effects = [
    { ...tag, value: 'sha256:b' },
    { ...other, value: 'sha256:b' },
  ]
  const half = modelWith([tag, 'sha256:a'], [other, 'sha256:a'])
  half.settle(half.begin('PUT two tags', effects), 'unknown')
  t.match(half.judge(holding([tag, 'sha256:b'], [other, 'sha256:a'])), [/^I4 PUT two tags happened by half/])
  const whole = modelWith([tag, 'sha256:a'], [other, 'sha256:a'])
  whole.settle(whole.begin('PUT two tags', effects), 'unknown')
  t.same(whole.judge(holding([tag, 'sha256:b'], [other, 'sha256:b'])), [])
})

t.test('who else wrote at the same time may have undone a part of it', async (t) => {
  const model = new Model()
  const lost = model.begin('PUT', [
    { ...manifest, value: 'present' },
    { ...tag, value: 'sha256:a' },
  ])
  model.settle(model.begin('DELETE', [{ ...tag, value: undefined }]), 'acknowledged')
  model.settle(lost, 'unknown')
  t.same(model.judge(holding([manifest, 'present'])), [])
})

t.test('what nobody made must not be there', async (t) => {
  t.match(new Model().judge(holding([tag, 'sha256:a'])), [/^I4 tag r:latest is there, but nobody/])
})

t.test('an upload is where its acknowledgements say, and holds the bytes that were sent', async (t) => {
  const bytes = Buffer.from('0123456789')
  const stored = { id: 'u', repository: 'r', offset: 4, bytes: Buffer.from('0123') }
  const judge = (low: number, found: (typeof stored)[]) => {
    const { sessions } = new Model()
    const session = sessions.open({ id: 'u', repository: 'r', digest: 'sha256:a', bytes })
    session.low = low
    session.high = 8
    return sessions.judge(found)
  }
  t.same(judge(4, [stored]), [])
  t.same(judge(0, [stored]), [], 'more may have arrived than was acknowledged')
  t.match(judge(6, [stored]), [/^I1 upload u of r is at 4/])
  t.match(judge(4, []), [/^I1 upload u of r is gone/])
  t.match(judge(4, [{ ...stored, bytes: Buffer.from('0x23') }]), [/^I4 upload u of r holds bytes/])
})
