import t from 'tap'
import { type StopStep, stopInOrder } from '../src/commands/stopping.js'

/*
 * What ends at a stop, and what happens to what does not.
 */

t.test('R32: a stop ends everything in order, and tells of nothing', async (t) => {
  const ended: string[] = []
  const step = (name: string): StopStep => [
    name,
    async () => {
      await null
      ended.push(name)
    },
  ]
  await stopInOrder([step('requests'), step('collection'), step('index')], 60_000, (name) => t.fail(name))
  t.same(ended, ['requests', 'collection', 'index'])
})

t.test('R32: a step that does not end is named', async (t) => {
  const late = await new Promise<string>((resolve) => {
    const steps: StopStep[] = [
      ['requests', async () => undefined],
      ['collection', () => new Promise(() => undefined)],
      [
        'index',
        async () => {
          t.fail('what comes after it does not begin')
        },
      ],
    ]
    void stopInOrder(steps, 20, resolve)
  })
  t.equal(late, 'collection')
})

t.test('a step that fails ends the stop with its error', async (t) => {
  const fails: StopStep = ['index', () => Promise.reject(new Error('broken'))]
  await t.rejects(
    stopInOrder([fails], 60_000, (name) => t.fail(name)),
    /broken/,
  )
})
