import { FakeUpstream } from '../mirror/fake-upstream.js'
import { mirrorFill, type RequestOperation, requestOperations } from './operations.js'
import { type ProcessOperation, processOperations } from './process-operations.js'

/** All that can be swept. */
export type Operation = RequestOperation | ProcessOperation

/** The upstream of mirrors; it runs while there is something to sweep. */
export const upstream = new FakeUpstream({})

const mirrorFillName = 'mirror-fill'

/** The names of all operations. */
export const operationNames: readonly string[] = [
  ...requestOperations.map(({ name }) => name),
  mirrorFillName,
  ...processOperations.map(({ name }) => name),
]

/** The names of those that leave a folder of a server at each moment of them: after a power cut it goes on there. */
export const steadyOperationNames: readonly string[] = operationNames.filter((name) =>
  processOperations.every((one) => one.name !== name || one.isFolderOpen !== true),
)

/** The operations with these names. @param names of {@link operationNames}; the upstream must run */
export function operationsCalled(names: readonly string[]): Operation[] {
  const all: readonly Operation[] = [...requestOperations, mirrorFill(upstream), ...processOperations]
  return all.filter(({ name }) => names.includes(name))
}

/** Whether a process of its own does it. */
export function isProcess(operation: Operation): operation is ProcessOperation {
  return !('act' in operation)
}
