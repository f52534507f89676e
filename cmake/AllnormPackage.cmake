# Install and export. Components of the installation: development (library, headers, package files) and program.
set(package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/allnorm")
set(package_targets Targets)

install(TARGETS allnorm allnorm_shared EXPORT allnormTargets COMPONENT development)
install(DIRECTORY include/allnorm DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}" COMPONENT development
  FILES_MATCHING PATTERN "*.hpp" PATTERN "*.h")
if(ALLNORM_HAVE_MPI)
  # A set of its own: who links only allnorm::allnorm needs no MPI.
  install(TARGETS allnorm_mpi EXPORT allnormMpiTargets COMPONENT development)
  list(APPEND package_targets MpiTargets)
endif()
foreach(set IN LISTS package_targets)
  install(EXPORT allnorm${set} NAMESPACE allnorm:: DESTINATION "${package_dir}" COMPONENT development)
  export(EXPORT allnorm${set} NAMESPACE allnorm:: FILE "${PROJECT_BINARY_DIR}/allnorm${set}.cmake")
endforeach()

configure_package_config_file(cmake/allnormConfig.cmake.in "${PROJECT_BINARY_DIR}/allnormConfig.cmake"
  INSTALL_DESTINATION "${package_dir}" NO_SET_AND_CHECK_MACRO)
write_basic_package_version_file("${PROJECT_BINARY_DIR}/allnormConfigVersion.cmake" COMPATIBILITY SameMinorVersion)
install(FILES "${PROJECT_BINARY_DIR}/allnormConfig.cmake" "${PROJECT_BINARY_DIR}/allnormConfigVersion.cmake"
  DESTINATION "${package_dir}" COMPONENT development)

# For the C interface. The prefix may be chosen when it is installed.
install(CODE "set(PROJECT_DESCRIPTION \"${PROJECT_DESCRIPTION}\")
  set(PROJECT_VERSION ${PROJECT_VERSION})
  set(CMAKE_INSTALL_LIBDIR \"${CMAKE_INSTALL_LIBDIR}\")
  set(CMAKE_INSTALL_INCLUDEDIR \"${CMAKE_INSTALL_INCLUDEDIR}\")
  configure_file(\"${PROJECT_SOURCE_DIR}/cmake/allnorm.pc.in\" \"${PROJECT_BINARY_DIR}/allnorm.pc\" @ONLY)"
  COMPONENT development)
install(FILES "${PROJECT_BINARY_DIR}/allnorm.pc" DESTINATION "${CMAKE_INSTALL_LIBDIR}/pkgconfig" COMPONENT development)
