import t from 'tap'
import { Mirror, Mirrors } from '../../src/mirror/mirrors.js'
import { MirrorNames } from '../../src/mirror/names.js'
import { Pushes } from '../../src/mirror/pushes.js'
import type { Upstream } from '../../src/mirror/upstream.js'
import { parseRepositoryName } from '../../src/oci/reference.js'
import { parseRepositoryPattern } from '../../src/oci/repository-pattern.js'
import type { Asker, Intent, NameRequest } from '../../src/registry/names.js'
import type { RepositoryKind } from '../../storage/mirror-store.js'

/** Every mirror takes every name but those below `deny`. None is ever asked. */
function mirrorNamed(name: string, takesBareNames: boolean): Mirror {
  return new Mirror({
    name,
    namespaces: [name],
    upstream: {} as Upstream,
    hasLibrary: takesBareNames,
    takesBareNames,
    allow: [parseRepositoryPattern('**')],
    deny: [parseRepositoryPattern('deny/**')],
    freshness: 0,
    onUpstreamDeleted: 'keep',
    isOpen: true,
    viaName: 'boathouse-test',
  })
}

const mirrors = new Mirrors([mirrorNamed('docker.io', true), mirrorNamed('ghcr.io', false)])
const names = ['app', 'team/app', 'deny/app', 'docker.io/app', 'docker.io/team/app', 'ghcr.io/deny/app']
const uses: readonly NameRequest['use'][] = ['manifest', 'blob', 'list', 'change']

/** Somebody who may see no repository by the name that he asks for; `behind`: whether he may see all others. */
const blindFor = (asked: string, behind: boolean, intent: Intent): Asker => ({
  sender: 'somebody',
  sees: (name) => name !== asked && behind,
  mayPull: (name) => name !== asked && behind,
  intentOf: () => intent,
})

t.test('S88: what somebody may not see is not looked at, and changes nothing for him', async (t) => {
  let combinations = 0
  for (const asked of names.map(parseRepositoryName)) {
    for (const use of uses) {
      for (const isHead of [false, true]) {
        for (const intent of ['push', 'pull', 'unknown'] as const) {
          for (const behind of [false, true]) {
            const looked: string[] = []
            const resolve = (kind: RepositoryKind) =>
              new MirrorNames(mirrors, {
                findRepositoryKind: async (name) => {
                  looked.push(name)
                  return name === asked ? kind : 'absent'
                },
              }).resolve({ asked, use, isHead }, blindFor(asked, behind, intent))
            const absent = await resolve('absent')
            t.strictSame([await resolve('local'), await resolve('mirrored')], [absent, absent])
            t.notOk(looked.includes(asked), `${asked} is not looked up`)
            combinations++
          }
        }
      }
    }
  }
  t.equal(combinations, names.length * uses.length * 12)
})

t.test('S88: a token is good for the same names, whatever is here', async (t) => {
  const store = { findRepositoryKind: async () => t.fail('nothing is looked up') as never }
  const resolver = new MirrorNames(mirrors, store)
  const others = names.map((name) => [name, ...resolver.othersOf(parseRepositoryName(name))])
  t.strictSame(others, [
    ['app', 'docker.io/library/app'],
    ['team/app', 'docker.io/team/app'],
    ['deny/app', 'docker.io/deny/app'],
    ['docker.io/app', 'docker.io/library/app'],
    ['docker.io/team/app'],
    ['ghcr.io/deny/app'],
  ])
  t.strictSame(resolver.othersOf(parseRepositoryName('x'.repeat(255))), [], 'too long to lie behind a mirror')
})

t.test('S76: a push is known again by the same sender, until he pulls', async (t) => {
  const resolver = new MirrorNames(mirrors, { findRepositoryKind: async () => 'absent' })
  const asker = (sender: string): Asker => ({
    sender,
    sees: () => true,
    mayPull: () => true,
    intentOf: () => 'unknown',
  })
  const asked = parseRepositoryName('team/new')
  const isUpstreams = async (sender: string, use: NameRequest['use'], isHead: boolean) =>
    (await resolver.resolve({ asked, use, isHead }, asker(sender))).mirror !== undefined
  t.equal(await isUpstreams('ann', 'manifest', true), true, 'HEAD alone may be a pull')
  t.equal(await isUpstreams('ann', 'blob', true), false)
  t.equal(await isUpstreams('ann', 'manifest', true), false, 'HEAD after that of a layer is a push')
  t.equal(await isUpstreams('ben', 'manifest', true), true, 'of this sender alone')
  t.equal(await isUpstreams('ann', 'manifest', false), true, 'GET is a pull')
  t.equal(await isUpstreams('ann', 'manifest', true), true, 'and so is what follows')
  t.equal(await isUpstreams('ben', 'change', false), false)
  t.equal(await isUpstreams('ben', 'manifest', true), false, 'HEAD after a session began')
})

t.test('S76: names that are being pushed are remembered within a bound', async (t) => {
  const pushes = new Pushes()
  for (let n = 0; n < 10_001; n++) pushes.note('ann', `team/new-${n}`)
  t.equal(pushes.has('ann', 'team/new-0'), false, 'the oldest is forgotten')
  t.equal(pushes.has('ann', 'team/new-1'), true)
  t.equal(pushes.has('ann', 'team/new-10000'), true)
})
