# cmake -P: configures, builds and runs the consumer against allnorm's installation (tree=install) or build tree (tree=build).
function(run)
  execute_process(COMMAND ${ARGN} COMMAND_ERROR_IS_FATAL ANY)
endfunction()

file(REMOVE_RECURSE "${work_dir}")
set(prefix "${build_dir}")
if(tree STREQUAL "install")
  set(prefix "${work_dir}/prefix")
  run(${CMAKE_COMMAND} --install "${build_dir}" --config "${config}" --component development --prefix "${prefix}")
endif()
run(${CMAKE_COMMAND} -S "${CMAKE_CURRENT_LIST_DIR}" -B "${work_dir}/build" -G "${generator}" "-DCMAKE_BUILD_TYPE=${config}"
  "-DCMAKE_CXX_COMPILER=${compiler}" "-DCMAKE_CXX_FLAGS=${flags}" "-DCMAKE_PREFIX_PATH=${prefix}"
  -DCMAKE_FIND_USE_PACKAGE_REGISTRY=OFF)
run(${CMAKE_COMMAND} --build "${work_dir}/build" --config "${config}")
execute_process(COMMAND "${work_dir}/build/consumer" OUTPUT_VARIABLE output COMMAND_ERROR_IS_FATAL ANY)
message("${output}")
foreach(line IN ITEMS "rank 0: mean 2.5, variance 2.25, y -1.000" "rank 1: mean 2.5, variance 2.25, y 1.000")
  if(NOT output MATCHES "${line}")
    message(FATAL_ERROR "consumer printed the lines above, must have printed: ${line}")
  endif()
endforeach()
